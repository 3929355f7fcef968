"""Writes the windows of `tracking.also`: TensorBoard, Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from experiments.tracking import tensorboard, wandb_runs
from experiments.tracking.also import asked_for
from maskgit_core.errors import TrackingError


def mirror(store: Path) -> int:
    """Writes what is new for every window that was asked for; returns the number of steps written.

    Raises:
        TrackingError: a window's package is not installed, or it refused what it was given; the others are written.
    """
    written, problems = 0, []
    for window in (tensorboard, wandb_runs):
        try:
            written += sum(window.write(step) for step in asked_for(store, window.NAME))
        except TrackingError as error:
            problems.append(str(error))
    if problems:
        raise TrackingError("; ".join(problems))
    return written
