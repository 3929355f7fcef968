"""`tracking.also`: curves and scores in further windows, worked out from the journals; MLflow stays the first.

Executions that ask for one are written to `<store>/<window>/<experiment>/<uid>/<step>/` whenever numbers are shipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.store.documents import Manifest
from experiments.store.journal import Point, read_points
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, PipelineStep, sound_records
from experiments.store.scores import named_values, read_scores
from maskgit_core.errors import TrackingError


@dataclass(frozen=True)
class Told:
    """A step of an execution that a window is to show."""

    store: Path
    record: PipelineRecord
    entry: PipelineStep
    window: str

    @property
    def folder(self) -> Path:
        """The step's folder."""
        return self.store / self.entry.folder

    @property
    def place(self) -> Path:
        """Where the window's files of this step belong."""
        name = re.sub(r"[^\w.=,\[\]-]", "_", self.entry.name)
        return self.store / self.window / self.record.experiment / self.record.uid / name

    def points(self) -> list[Point]:
        """The points of the step that count, and its scores at step 0."""
        points, manifest = read_points(self.folder), Manifest.read(self.folder)
        if manifest is not None:
            known, at = {point.metric for point in points}, int(manifest.time * 1000)
            points += [Point(name, 0, value, at) for name, value in self.scores().items() if name not in known]
        return points

    def scores(self) -> dict[str, float]:
        """The scores of a finished step by name."""
        manifest = Manifest.read(self.folder)
        if manifest is None:
            return {}
        return named_values(read_scores(StepFolder(self.folder).attempt(manifest.attempt).files, manifest.headline))


def asked_for(store: Path, window: str, every: bool = False) -> Iterator[Told]:
    """Steps of the executions that named this window (or of `every` one), oldest first, without damaged records."""
    for record in reversed(sound_records(store)[0]):
        tracking = record.settings.get("tracking")
        if every or (isinstance(tracking, dict) and window in (tracking.get("also") or ())):
            yield from (Told(store, record, entry, window) for entry in record.steps)


def not_installed(window: str) -> TrackingError:
    """The refusal where a window's package is missing, with the remedy."""
    return TrackingError(f"tracking.also: {window} is not installed; pip install {window}, then maskgit sync")
