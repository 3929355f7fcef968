"""A cell is filled by a run of the row's own request and by no other; the others say in what they differ."""

from __future__ import annotations

from pathlib import Path

import yaml
from conftest import LAB, Maskgit

from experiments.results.row_requests import RowRequests
from experiments.results.tables import Cell, fill, missing, read_table

EXPERIMENT = """\
# @package _global_
plugins: [toylab]
pipeline:
  steps:
    descent: {stage: descent}
    distance: {stage: distance, needs: [descent]}
"""
TABLE = {
    "title": "Toys",
    "columns": {"d": {"metric": "fd_toy", "protocol": "toy"}},
    "rows": [
        {"name": "as it is", "run": {"experiment": "toys", "step": "distance"}},
        {
            "name": "slower",
            "run": {"experiment": "toys", "step": "distance", "where": {"descent.lr": 0.05},
                    "overrides": ["descent.lr=0.05"]},
        },
    ],
}  # fmt: skip


def lab(tmp_path: Path) -> list[Path]:
    for folder, name, text in (("experiment", "toys", EXPERIMENT), ("table", "toys", yaml.safe_dump(TABLE))):
        (tmp_path / "conf" / folder).mkdir(parents=True)
        (tmp_path / "conf" / folder / f"{name}.yaml").write_text(text)
    return [tmp_path / "conf", LAB]


def cells(store: Path, dirs: list[Path]) -> list[Cell]:
    return [row["d"] for row in fill(read_table("toys", dirs), store, RowRequests(dirs)).cells]


def test_only_the_row_s_own_request_fills_its_cell(tmp_path: Path, store: Path, maskgit: Maskgit) -> None:
    dirs = lab(tmp_path)
    args = ["experiment=toys", "tracking.ship=false", *(f"--config-dir={folder}" for folder in dirs)]
    assert maskgit("run", *args, "descent.num_train_steps=3", "resources.descent.cpus_per_task=2").returncode == 0
    smoke, slower = cells(store, dirs)
    assert smoke.reproduced is None and smoke.differs == "differs: descent.num_train_steps 3 (not 20)"
    assert slower.reproduced is None and slower.differs is None
    shown = maskgit("table", "toys", *args[2:])
    assert "| as it is | differs: descent.num_train_steps 3 (not 20) [1] |" in shown.stdout, shown.stdout + shown.stderr
    assert maskgit("run", *args, "descent.lr=0.1,0.05").returncode == 0
    plain, slower = cells(store, dirs)
    assert plain.reproduced is not None and slower.reproduced is not None, missing(
        fill(read_table("toys", dirs), store, RowRequests(dirs))
    )
    assert plain.reproduced.mean != slower.reproduced.mean


def test_commands_name_what_the_user_must_set() -> None:
    requests = RowRequests()
    assert requests.unset({"experiment": "quickstart"}) == []
    assert requests.unset({"experiment": "evaluate_samples"}) == ["samples"]
