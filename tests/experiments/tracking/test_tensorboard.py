"""`tracking.also: [tensorboard]`: the journals' points and the scores as event files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LAB
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.launching.prepare import prepare
from experiments.planning.graph import store_of
from experiments.planning.pipeline import build
from experiments.planning.plan import Planner
from experiments.running.job import main
from experiments.tracking.tensorboard import mirror
from maskgit_core.errors import ConfigError


def run(store: Path, *overrides: str) -> None:
    graph = build(["experiment=rates", f"paths.store={store}", *overrides], [LAB])
    steps = Planner(graph).plan()
    prepare(graph, steps, store_of(graph))
    assert {main(str(s.node.folder)) for s in steps} == {0}


def test_points_and_scores_are_read_back(store: Path) -> None:
    run(store, "train.lr=0.1,0.3", "tracking.also=[tensorboard]")
    assert mirror(store) == 4 and mirror(store) == 0, "nothing new, nothing written"
    (train,) = store.glob("tensorboard/rates/*/train[[]lr=0.1[]]")
    read = EventAccumulator(str(train)).Reload()
    losses = read.Scalars("loss")
    assert [e.step for e in losses] == list(range(20)) and losses[0].value > losses[-1].value
    (evaluate,) = store.glob("tensorboard/rates/*/evaluate[[]lr=0.1[]]")
    assert EventAccumulator(str(evaluate)).Reload().Scalars("fd_toy")[0].value == pytest.approx(0.0345876, rel=1e-3)


def test_nothing_is_written_unless_asked_for_and_other_names_are_refused(store: Path) -> None:
    run(store, "train.lr=0.1")
    assert mirror(store) == 0 and not (store / "tensorboard").exists()
    with pytest.raises(ConfigError, match=r"tracking\.also"):
        build(["experiment=rates", f"paths.store={store}", "tracking.also=[wandb]"], [LAB])
