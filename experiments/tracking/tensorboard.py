"""Curves and scores of a store as TensorBoard event files, worked out from the journals; MLflow stays the window.

Executions with `tracking.also: [tensorboard]` are written to `<store>/tensorboard/<experiment>/<uid>/<step>/`:
`tensorboard --logdir runs/tensorboard`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from experiments.store.documents import Manifest
from experiments.store.journal import Point, read_points
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, pipelines
from experiments.store.scores import named_values, read_scores
from maskgit_core.errors import TrackingError
from maskgit_core.files import read_json, write_json

NAME, FOLDER = "tensorboard", "tensorboard"


def mirror(store: Path) -> int:
    """Writes what is new of every execution that asked for it; returns the number of steps written.

    Raises:
        TrackingError: an execution asked for it and the package is not installed.
    """
    written = 0
    for path in pipelines(store):
        record = PipelineRecord.load(path)
        tracking = record.settings.get("tracking") if record is not None else None
        if record is None or not isinstance(tracking, dict) or NAME not in (tracking.get("also") or ()):
            continue
        for entry in record.steps:
            place = store / FOLDER / record.experiment / record.uid / re.sub(r"[^\w.=,\[\]-]", "_", entry.name)
            written += _write(_points(store / entry.folder), place)
    return written


def _points(folder: Path) -> list[Point]:
    """The points of a step that count, and its scores at step 0."""
    points, manifest = read_points(folder), Manifest.read(folder)
    if manifest is not None:
        files = StepFolder(folder).attempt(manifest.attempt).files
        scores = named_values(read_scores(files, manifest.headline))
        known, at = {point.metric for point in points}, int(manifest.time * 1000)
        points += [Point(name, 0, value, at) for name, value in scores.items() if name not in known]
    return points


def _write(points: list[Point], place: Path) -> bool:
    """One step's event file, written anew where it has more points than the last time; True where it was written."""
    note = place / "written.json"
    if not points or read_json(note) == {"points": len(points)}:
        return False
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise TrackingError(
            f"tracking.also: {NAME} is not installed; pip install tensorboard, then maskgit sync"
        ) from None
    shutil.rmtree(place, ignore_errors=True)
    writer = EventFileWriter(str(place))
    for point in points:
        value = Summary.Value(tag=point.metric, simple_value=point.value)
        writer.add_event(Event(wall_time=point.time / 1000, step=point.step, summary=Summary(value=[value])))
    writer.close()
    write_json(note, {"points": len(points)}, durable=False)
    return True
