"""Searches of the toy lab while their workers are killed, and what must hold afterwards."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from toylab.stages import held_out, logistic

SPACE = {
    "train.lr": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "train.momentum": [0.0, 0.5, 0.9, 0.95],
    "train.decay": [0.0, 0.001, 0.01, 0.1, 0.3],
}
STEPS = 90


@cache
def grid() -> dict[tuple[Any, ...], float]:
    """The score of every point of the space of `tuned`, trained to the end."""
    logistic.data = held_out.data = cache(logistic.data)  # type: ignore[assignment]
    scores = {}
    for values in itertools.product(*SPACE.values()):
        state = np.zeros((2, 6))
        for step in range(STEPS):
            state = logistic.train_step(state, step, *values)
        scores[values] = held_out.nll(state[0])
    return scores


def searched(store: Path) -> Path:
    """The folder of the only search in a store."""
    (folder,) = (store / "searches").iterdir()
    return folder


def kill_workers(store: Path, count: int, seed: int, over: Callable[[], bool]) -> list[int]:
    """Kills so many different workers, each in the middle of a trial's training; returns their process ids."""
    draws, killed = random.Random(seed), list[int]()
    while len(killed) < count and not over():
        time.sleep(draws.uniform(0.05, 0.6))
        for path in sorted(store.glob("searches/*/trials/*/claim.json"), key=lambda _: draws.random()):
            with suppress(OSError, ValueError):
                owner = json.loads(path.read_text())
                if owner["pid"] not in killed and _is_training(path.parent):
                    os.kill(owner["pid"], signal.SIGKILL)
                    killed.append(owner["pid"])
                    break
    return killed


def _is_training(trial: Path) -> bool:
    training = Path(json.loads((trial / "trial.json").read_text())["training"])
    return bool(list(training.glob("attempts/*/checkpoints/state.json"))) and (training / "claim.json").exists()


def trained_steps(store: Path) -> dict[str, int]:
    """Steps that each training was taken to; the journal must have each of them once."""
    reached = {}
    for folder in (path.parent for path in store.glob("logistic/*/request.json")):
        from experiments.store.journal import read_points

        steps = [point.step for point in read_points(folder) if point.metric == "norm"]
        assert steps == sorted(set(steps)) == list(range(1, len(steps) + 1)), f"{folder.name}: {steps}"
        reached[folder.name] = len(steps)
    return reached


def check(told: dict[str, Any], store: Path, trials: int) -> tuple[float, float]:
    """Nothing is lost and nothing doubled; returns best / best of the grid, and the share of the grid's steps."""
    rows = told["trials"]
    assert [row["number"] for row in rows] == list(range(trials))
    assert {row["state"] for row in rows} <= {"done", "pruned"}, [row for row in rows if row["state"] == "failed"]
    for row in rows:
        assert row["params"].keys() == SPACE.keys()
        if row["state"] == "done":
            assert np.isclose(row["value"], grid()[tuple(row["params"][key] for key in SPACE)], rtol=1e-9)
        assert (row["state"] == "done") == (str(STEPS) in row["values"])
    best = min(row["value"] for row in rows if row["state"] == "done")
    return best / min(grid().values()), sum(trained_steps(store).values()) / (len(grid()) * STEPS)
