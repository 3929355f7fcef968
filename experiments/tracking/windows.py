"""Writes the windows of `tracking.also`: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from experiments.tracking import tensorboard, wandb_runs
from experiments.tracking.also import asked_for
from maskgit_core.errors import TrackingError

WINDOWS = {module.NAME: module for module in (tensorboard, wandb_runs)}


def mirror(store: Path, also: Collection[str] = ()) -> int:
    """Writes what is new for every window that was asked for; returns the number of steps written.

    Args:
        also: windows for all executions, whatever they asked for.

    Raises:
        TrackingError: a window's package is not installed, or it refused what it was given; the others are written.
    """
    written, problems = 0, []
    for name, window in WINDOWS.items():
        try:
            written += sum(window.write(step) for step in asked_for(store, name, name in also))
        except TrackingError as error:
            problems.append(str(error))
    if problems:
        raise TrackingError("; ".join(problems))
    return written
