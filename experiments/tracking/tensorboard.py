"""`tracking.also: [tensorboard]`: a step's points as an event file; `tensorboard --logdir runs/tensorboard`."""

from __future__ import annotations

import shutil

from experiments.tracking.also import Told, not_installed
from maskgit_core.files import read_json, write_json

NAME = "tensorboard"


def write(step: Told) -> bool:
    """One step's event file, written anew where it has more points than the last time; True where it was written.

    Raises:
        TrackingError: the package is not installed.
    """
    note, points = step.place / "written.json", step.points()
    if not points or read_json(note) == {"points": len(points)}:
        return False
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise not_installed(NAME) from None
    shutil.rmtree(step.place, ignore_errors=True)
    writer = EventFileWriter(str(step.place))
    for point in points:
        value = Summary.Value(tag=point.metric, simple_value=point.value)
        writer.add_event(Event(wall_time=point.time / 1000, step=point.step, summary=Summary(value=[value])))
    writer.close()
    write_json(note, {"points": len(points)}, durable=False)
    return True
