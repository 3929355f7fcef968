"""Calls a stage with the keys of its config block, as a job does."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from experiments.config.schema.signatures import read_stage
from experiments.running.attempt import Attempt
from experiments.running.binding import grouped


def call(stage: ModuleType, attempt: Attempt | Any, **values: Any) -> None:
    """Runs `stage` with `values` by key."""
    stage.run(attempt, **grouped(read_stage(stage.__name__, stage.__name__), values))
