"""What is done where published weights are not on this machine: the rest runs, and every gap names its command."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Maskgit

from experiments.planning.pipeline import build, weights_of
from experiments.results.row_requests import RowRequests
from experiments.results.tables import fill, missing, read_table
from maskgit_core.errors import WeightsError


def digest(here: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def find(key: str, value: object, mark: str) -> str:
        if mark == "weights" and not str(value).startswith(here):
            raise WeightsError(f"{key}: {value}: the file is not on this machine")
        return f"{key}={value}"

    return find


def test_tokenizers_without_weights_are_left_out_and_named(tmp_path: Path) -> None:
    given = ["experiment=tokenizer_table", f"paths.store={tmp_path}"]
    graph = build(given, [], digest(("titok/maskgit", "amused", "fid", "lpips")))
    assert sorted(n.request.name for n in graph.nodes.values()) == ["amused_256", "amused_512", "maskgit_vqgan"]
    assert len(graph.left_out) >= 4
    assert (
        "llamagen_f8 is left out: needs llamagen/vq_ds8_c2i; maskgit weights fetch llamagen/vq_ds8_c2i"
        in graph.left_out
    )
    whole = build(given, [], digest(("",)))
    assert not whole.left_out and set(graph.nodes) < set(whole.nodes), "what is there keeps its identity"
    with pytest.raises(WeightsError, match="the file is not on this machine"):
        build(given, [], digest(("titok", "amused")))  # no step has its feature network


def test_a_step_that_lacks_what_is_upstream_is_left_out_too(tmp_path: Path) -> None:
    given = ["experiment=halton_imagenet", f"paths.store={tmp_path}", "pipeline.optional=true",
             "reference_statistics.statistics=x.npz"]  # fmt: skip
    graph = build(given, [], digest(("fid", "halton")))
    assert [n.request.name for n in graph.nodes.values()] == ["reference_statistics", "published"]
    assert any(line.startswith("evaluate is left out: needs llamagen/vq_ds16_c2i;") for line in graph.left_out)


def test_the_table_says_what_each_cell_needs(tmp_path: Path, maskgit: Maskgit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "lpips/alexnet" in weights_of(["experiment=tokenizer_table"], "taming_f16_1024")
    requests = RowRequests()
    monkeypatch.setattr(requests, "absent", lambda run: ["one/a", "two/b"])
    cells = missing(fill(read_table("tokenizers"), tmp_path, requests))
    assert len(cells) >= 20
    assert all("needs one/a, two/b; maskgit weights fetch one/a two/b && maskgit run" in cell for cell in cells)
    shown = maskgit("table", "tokenizers", env={"MASKGIT_HOME": str(tmp_path / "home"), "TORCH_HOME": str(tmp_path)})
    assert shown.returncode == 0 and shown.stdout.count("needs ") == len({cell.split(" of ", 1)[1] for cell in cells})
    assert "needs titok/maskgit-vqgan-imagenet-f16-256, fid/inception-2015-12-05, lpips/alexnet" in shown.stdout
