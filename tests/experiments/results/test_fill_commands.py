"""docs/reproducing.md and the commands that tables print: every row, complete, and accepted by the planner."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from toy_data import write_ffhq, write_ilsvrc, write_torch_statistics, write_virtual

from experiments.planning.pipeline import build
from experiments.results.fill_commands import fill_arguments
from experiments.results.tables import read_table, table_names
from tools.reproducing import PAGE, renewed

COMMANDS = sorted(set(re.findall(r"`(?:maskgit run )(experiment=[^`]+)`", PAGE.read_text())))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reproducing")
    virtual = str(write_virtual(folder / "virtual.npz"))
    return {
        "IMAGENET": str(write_ilsvrc(folder / "imagenet", train=4, val=3)),
        "FFHQ": str(write_ffhq(folder / "ffhq")),
        "VIRTUAL_imagenet256_labeled.npz": virtual,
        "VIRTUAL_imagenet512.npz": virtual,
        "ImageNet_256_train_stats.pt": str(write_torch_statistics(folder / "statistics.pt")),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_the_page_is_planned(command: str, places: dict[str, str], tmp_path: Path) -> None:
    words = []
    for word in shlex.split(command):
        key, _, value = word.partition("=")
        assert key not in ("dataset.root", "reference_statistics.statistics") or value in places, f"{word} stands for?"
        words.append(f"{key}={places.get(value, value)}")
    if "IMAGENET" in command:
        words.append("dataset.partial=true")
    if "FFHQ" in command:
        words += ["dataset.partial=true", "dataset.num_val=4", "evaluate.subset_size=10"]
    assert build([*words, f"paths.store={tmp_path}"], digest=lambda key, value, mark: "0" * 64).nodes


def test_the_page_has_every_table_and_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert sorted(re.findall(r"<!-- rows: (\w+) -->", text)) == table_names()
    assert renewed(text) == text, "python -m tools.reproducing"
    for name in table_names():
        for row in read_table(name).rows:
            assert row.run is None or f"| {row.name} |" in text


def test_a_row_changes_the_header_s_command() -> None:
    words = fill_arguments("halton_v1_imagenet", ["reference_statistics.statistics=OTHER.npz", "sampler=x"], ["seed"])
    assert words == [
        "experiment=halton_v1_imagenet",
        "reference_statistics.statistics=OTHER.npz",
        "sampler=x",
        "seed=...",
    ]
    assert fill_arguments("maskgit_imagenet256", [])[1:] == [
        "dataset.root=IMAGENET",
        "reference_statistics.statistics=VIRTUAL_imagenet256_labeled.npz",
    ]
