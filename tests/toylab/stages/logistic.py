"""Logistic regression by stochastic gradient descent: a training in miniature, with checkpoints that it keeps."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np

from experiments.running.attempt import Attempt
from experiments.training.kept import publish_kept
from maskgit_core.hints import Execution, Neutral, Range

VERSION = 1
PRODUCES = "model"


def data(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (count, 6) and labels (count,) in {0, 1} that no model can tell apart wholly."""
    draws = np.random.default_rng(seed)
    inputs = draws.normal(size=(count, 6)) * [1.0, 1.0, 0.3, 3.0, 0.1, 1.0]
    chance = 1 / (1 + np.exp(-inputs @ np.array([1.5, -1.0, 2.0, 0.2, -3.0, 0.0])))
    return inputs, (draws.random(count) < chance).astype(float)


def train_step(state: np.ndarray, step: int, lr: float, momentum: float, decay: float) -> np.ndarray:
    """Weights and velocity (2, 6) after one more step on the batch of that step."""
    inputs, labels = data(1, 512)
    batch = np.random.default_rng([7, step]).choice(512, 16)
    weights, velocity = state
    error = 1 / (1 + np.exp(-np.clip(inputs[batch] @ weights, -60, 60))) - labels[batch]
    velocity = momentum * velocity - lr * (inputs[batch].T @ error / 16 + decay * weights)
    return np.stack([weights + velocity, velocity])


def run(
    attempt: Attempt,
    *,
    lr: float = 0.1,
    momentum: Annotated[float, Range(0.0, 1.0, high_open=True)] = 0.0,
    decay: Annotated[float, Range(0.0)] = 0.0,
    num_train_steps: Annotated[int, Range(1)] = 90,
    keep_every: Annotated[int | None, Range(1), Neutral(None)] = None,
    pause_at: Annotated[Execution[int | None], Range(1)] = None,
    step_s: Execution[float] = 0.0,
    fail_above: Execution[float] = 1e9,
) -> None:
    """Trains; saves after every step, and goes on from there."""
    step, state = 0, np.zeros((2, 6))
    for path in (attempt.checkpoints / "state.json", *(p / "state.json" for p in attempt.earlier_checkpoints())):
        if path.exists():
            saved = json.loads(path.read_text())
            step, state = saved["step"], np.array(saved["state"])
            break
    attempt.resumed_at(step + 1)
    while step < min(num_train_steps, pause_at or num_train_steps):
        if lr > fail_above:
            raise RuntimeError("asked to fail")
        time.sleep(step_s)
        state, step = train_step(state, step, lr, momentum, decay), step + 1
        attempt.log({"norm": float(np.abs(state[0]).sum())}, step)
        attempt.flush()
        text = json.dumps({"step": step, "state": state.tolist()})
        attempt.publish(attempt.checkpoints / "state.json", lambda path, text=text: path.write_text(text))
        if keep_every and step % keep_every == 0:
            _keep(attempt, step, state)
        if attempt.should_stop:
            attempt.stop()
    if keep_every and step and step % keep_every == 0:
        _keep(attempt, step, state)  # killed between saving and keeping, it would be missing for ever
    if step < num_train_steps:
        attempt.pause(f"paused at step {step}")
    attempt.publish(attempt.files / "model.json", lambda path: path.write_text(json.dumps(state[0].tolist())))
    attempt.fact(num_train_steps=step)


def _keep(attempt: Attempt, step: int, state: np.ndarray) -> None:
    def fill(files: Path) -> None:
        (files / "model.json").write_text(json.dumps(state[0].tolist()))

    publish_kept(attempt, step, fill, {"num_train_steps": step})
