"""Which points are shipped, so that each arrives exactly once however often and by whomever it is sent.

Of all points with the same metric and step, over all attempts, the one journaled first is shipped and no other.
Journals only grow and a point's time is fixed in them, so every forwarder, whenever and wherever it reads, ships the
same points; a tracking store keeps one copy of equal points. A lost reply, a killed forwarder, two forwarders at once
and a lost offset therefore cost time, never a point or a double one. The offset only saves work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.store.journal import Line, Point, read_lines, started


@dataclass
class Batch:
    """Points to send together, and the offsets (attempt -> byte) that hold once they have arrived."""

    points: list[Point]
    marks: dict[str, int]


def first_points(journals: Sequence[Path], marks: Mapping[str, int], limit: int = 1000) -> Iterator[Batch]:
    """Batches of at most `limit` points after `marks`.

    What an attempt wrote after its successor had begun is a zombie's and left out. Whole lines stay together unless
    one alone is longer than a batch; an offset is given only once all points before it are in a batch.
    """
    seen: set[tuple[str, int]] = set()
    arrived, now = dict(marks), dict(marks)
    points: list[Point] = []
    for number, path in enumerate(journals):
        name, successor = path.parent.name, journals[number + 1] if number + 1 < len(journals) else None
        until = started(successor) if successor is not None else None
        for line in read_lines(path)[0]:
            if until is not None and line.time > until:
                continue
            fresh = _unseen(line, seen)
            if line.end <= marks.get(name, 0):
                continue
            if points and len(points) + len(fresh) > limit:
                arrived = dict(now)
                yield Batch(points, arrived)
                points = []
            points = points + fresh if points else fresh
            while len(points) > limit:
                yield Batch(points[:limit], arrived)
                points = points[limit:]
            now[name] = line.end
    if points or now != arrived:
        yield Batch(points, now)


def _unseen(line: Line, seen: set[tuple[str, int]]) -> list[Point]:
    fresh = []
    for metric, value in line.metrics.items():
        if (metric, line.step) not in seen:
            seen.add((metric, line.step))
            fresh.append(Point(metric, line.step, value, line.time))
    return fresh


def last_points(journals: Sequence[Path]) -> dict[str, Point]:
    """The shipped point of each metric at its highest step."""
    last: dict[str, Point] = {}
    for batch in first_points(journals, {}):
        for point in batch.points:
            if point.metric not in last or point.step >= last[point.metric].step:
                last[point.metric] = point
    return last
