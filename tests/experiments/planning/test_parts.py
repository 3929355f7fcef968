"""Parts of a DAG (`--until`, `--from`, `--only`), and plans where published weights are absent."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LAB, Maskgit

from experiments.planning.absent_weights import with_absent_weights
from experiments.planning.parts import Part
from experiments.planning.pipeline import build
from experiments.planning.plan import Planner
from maskgit_core.errors import ConfigError, WeightsError


def names(tmp_path: Path, part: Part) -> list[str]:
    graph = build(["experiment=quickstart", f"paths.store={tmp_path}"], digest=lambda *a: "0" * 64, part=part)
    return [node.name for node in graph.nodes.values()]


def test_until_keeps_what_a_step_needs_and_no_more(tmp_path: Path) -> None:
    assert names(tmp_path, Part(until=("cache_tokens",))) == ["train_tokenizer", "cache_tokens"]
    both = names(tmp_path, Part(until=("sample",), since=("train",)))
    assert both[-2:] == ["train", "sample"] and "evaluate" not in both


def test_a_part_keeps_the_fingerprints_of_the_whole(tmp_path: Path) -> None:
    request = ["experiment=quickstart", f"paths.store={tmp_path}"]
    whole = build(request, digest=lambda *a: "0" * 64)
    part = build(request, digest=lambda *a: "0" * 64, part=Part(only=("evaluate",)))
    assert set(part.nodes) < set(whole.nodes) and set(part.items[0].steps) == {n.name for n in part.nodes.values()}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(until=("evalute",)), "--until: there is no step 'evalute'; did you mean evaluate?"),
        (Part(until=("train",), only=("train",)), "--only: excludes"),
        (Part(until=("train_tokenizer",), since=("train",)), "--from train: comes after --until train_tokenizer"),
    ],
)
def test_a_part_that_cannot_be_is_refused(tmp_path: Path, part: Part, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        names(tmp_path, part)


def test_a_part_runs_alone_once_what_it_needs_is_done(tmp_path: Path, maskgit: Maskgit) -> None:
    args = ("experiment=chain", "--config-dir", str(LAB), f"paths.store={tmp_path}", "tracking.ship=false")
    refused = maskgit("run", *args, "--only", "total")
    assert refused.returncode == 2 and "numbers: is not finished (never run)" in refused.stderr
    assert maskgit("run", *args, "--until", "numbers").returncode == 0
    assert not (tmp_path / "total").exists()
    done = maskgit("run", *args, "--only", "total")
    assert done.returncode == 0, done.stderr
    assert "2 steps: 2 done" in maskgit("plan", *args).stdout


def test_a_plan_shows_the_whole_dag_with_the_weights_it_needs(tmp_path: Path) -> None:
    def digest(key: str, value: object, mark: str) -> str:
        if mark == "weights":
            raise WeightsError(f"{key}: {value}: the file is not on this machine")
        return "0" * 64

    request = ["experiment=halton_imagenet", f"paths.store={tmp_path}", "reference_statistics.statistics=x.npz"]
    with pytest.raises(WeightsError):
        build(request, [], digest)
    graph = build(request, [], digest, allow_absent=True)
    planned = with_absent_weights(Planner(graph).plan(), graph.absent)
    reasons = {s.node.name: s.reason for s in planned}
    assert len(reasons) == 4
    assert "needs weights llamagen/vq_ds16_c2i (" in reasons["sample"]
    assert "maskgit weights fetch llamagen/vq_ds16_c2i)" in reasons["sample"]
    assert not any(s.identified for s in planned), "a fingerprint that counts unknown bytes is not told"
