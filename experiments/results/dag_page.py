"""One execution as one self-contained page: its DAG, every step's state, reasons, times, curves, newest pictures."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.config.settings import resolve_uri
from experiments.console import duration, number
from experiments.results import html
from experiments.results.plots import thin
from experiments.store.documents import Manifest, Notes
from experiments.store.journal import SYSTEM_PREFIX, curves, read_points
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord
from experiments.store.typed_json import Block, Options
from experiments.tracking.presentation import short_uid
from maskgit_core.errors import MaskgitError
from maskgit_core.files import read_json

#: In the order in which a bar shows them.
STATES = ("done", "running", "queued", "waiting", "stopped", "cancelled", "blocked", "killed", "failed")
MAX_CURVES, MAX_PICTURES = 9, 6
MAX_JOURNAL_BYTES, MAX_PICTURE_BYTES = 20_000_000, 2_000_000
LOCAL_UI = "http://127.0.0.1:5000"  # where `maskgit ui` shows the embedded store
_BOX, _GAP_X, _GAP_Y, _HEIGHT = 190, 70, 26, 58  # pixels of the drawing


@dataclass(frozen=True)
class Box:
    """A step name in the drawing: a bar with a piece for each state."""

    name: str
    x: float
    y: float
    total: int
    pieces: tuple[tuple[str, float, float], ...]  # state, x, width
    counts: str


@dataclass(frozen=True)
class Curve:
    """A line of one metric, scaled into 100 x 40."""

    title: str
    line: str
    low: str
    high: str
    last: str
    steps: int


def page(record: PipelineRecord, rows: Sequence[Options], store: Path, refresh_s: int | None = None) -> str:
    """The page of an execution.

    Args:
        rows: of `experiments.monitoring.status.rows_of`.
        refresh_s: the browser loads it again after so many seconds; None: never.
    """
    links = MlflowLinks(record, store)
    boxes, arrows, size = drawing(record, rows)
    counts = Counter(str(row["state"]) for row in rows)
    return html.render(
        "dag",
        title=record.experiment,
        refresh_s=refresh_s,
        about=_about(record, rows),
        counts=[(state, counts[state]) for state in STATES if counts[state]],
        boxes=boxes,
        arrows=arrows,
        size=size,
        box=(_BOX, _HEIGHT),
        groups=_groups(rows, links),
        curves=_curves(rows),
        pictures=_pictures(rows),
        parent=links.of(record.uid),
        where=links.where,
    )


def _about(record: PipelineRecord, rows: Sequence[Options]) -> list[str]:
    spent = sum(float(row["seconds"] or 0.0) for row in rows)
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.time))
    told = [f"run {record.uid} of {record.user}, started {started}", f"{duration(spent)} in all steps together"]
    return [*([record.description] if record.description else []), *told, record.command]


# -- the drawing ------------------------------------------------------------------------------------------------------
def drawing(record: PipelineRecord, rows: Sequence[Options]) -> tuple[list[Box], list[str], tuple[float, float]]:
    """A box a step name (all items of a sweep together), arrows as SVG paths, and the size; left to right by depth."""
    step_of = {entry.fingerprint: entry.step for entry in record.steps}
    needs: dict[str, set[str]] = {}
    for entry in record.steps:
        needs.setdefault(entry.step, set()).update(step_of[n] for n in entry.needs if n in step_of)
    states: dict[str, Counter[str]] = {name: Counter() for name in needs}
    for row in rows:
        states[step_of[str(row["fingerprint"])]][str(row["state"])] += 1
    depth = _depths(needs)
    columns: dict[int, list[str]] = {}
    for name in needs:
        columns.setdefault(depth[name], []).append(name)
    place = {
        name: (12 + column * (_BOX + _GAP_X), 12 + line * (_HEIGHT + _GAP_Y))
        for column, names in columns.items()
        for line, name in enumerate(names)
    }
    boxes = [_box(name, *place[name], states[name]) for name in needs]
    arrows = [_arrow(place[source], place[name]) for name, sources in needs.items() for source in sorted(sources)]
    width = 24 + (max(columns, default=0) + 1) * (_BOX + _GAP_X) - _GAP_X
    height = 24 + max((len(names) for names in columns.values()), default=1) * (_HEIGHT + _GAP_Y) - _GAP_Y
    return boxes, arrows, (width, height)


def _depths(needs: Mapping[str, set[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for _ in needs:  # at most one round a step
        for name, sources in needs.items():
            depth[name] = 1 + max((depth.get(source, 0) for source in sources if source != name), default=-1)
    return depth


def _box(name: str, x: float, y: float, states: Counter[str]) -> Box:
    total, at, pieces = sum(states.values()), x + 10.0, []
    for state in STATES:
        if states[state]:
            width = (_BOX - 20) * states[state] / total
            pieces.append((state, at, width))
            at += width
    told = ", ".join(f"{states[s]} {s}" for s in STATES if states[s])
    return Box(name, x, y, total, tuple(pieces), told)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0, x1, y1 = start[0] + _BOX, start[1] + _HEIGHT / 2, end[0] - 4, end[1] + _HEIGHT / 2
    bend = max(30.0, (x1 - x0) / 2)
    return f"M{x0:.0f},{y0:.0f} C{x0 + bend:.0f},{y0:.0f} {x1 - bend:.0f},{y1:.0f} {x1:.0f},{y1:.0f}"


# -- the table --------------------------------------------------------------------------------------------------------
def _groups(rows: Sequence[Options], links: MlflowLinks) -> list[Block]:
    """Rows by step name, those with trouble first; a large group is folded."""
    groups: dict[str, list[Options]] = {}
    for row in rows:
        groups.setdefault(str(row["name"]).partition("[")[0], []).append(row)
    found = []
    for name, members in groups.items():
        counts = Counter(str(row["state"]) for row in members)
        ordered = sorted(members, key=lambda row: -STATES.index(row["state"]) if row["state"] in STATES else 0)
        found.append(
            {
                "name": name,
                "counts": ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]),
                "is_open": len(members) <= 20,
                "rows": [_line(row, links) for row in (members if len(members) <= 20 else ordered)],
            }
        )
    return found


def _line(row: Options, links: MlflowLinks) -> Block:
    head, progress = row["headline"], row["progress"]
    told = " ".join(str(row["reason"]).split())[:300]
    if progress and progress.get("total"):
        rate = progress["rate"] or 0
        left = f", {duration((progress['total'] - progress['done']) / rate)} left" if rate else ""
        told = f"{progress['done']}/{progress['total']} {progress['unit']}s{left}"
    return {
        "name": row["name"],
        "state": row["state"],
        "job": row["job"] or "",
        "time": duration(row["seconds"]),
        "result": f"{head['name']} {number(head['value'])}" if head else "",
        "told": told,
        "link": links.of(f"{links.uid}/{row['name']}"),
    }


class MlflowLinks:
    """Addresses of runs in MLflow's pages, as far as this store remembers what it shipped; nothing is asked."""

    def __init__(self, record: PipelineRecord, store: Path) -> None:
        self.uid = record.uid
        uri = (record.settings.get("tracking") or {}).get("uri") if isinstance(record.settings, Mapping) else None
        address = ""
        with suppress(MaskgitError):
            address = resolve_uri(store, uri)
        self._base = address.rstrip("/") if address.startswith("http") and "@" not in address else LOCAL_UI
        self.where = "" if address.startswith("http") else "links into MLflow work while `maskgit ui` runs"
        memory = store / "tracking" / hashlib.sha256(address.encode()).hexdigest()[:12]
        places = sorted(memory.iterdir()) if memory.is_dir() else []
        note = _note(self.uid)
        self._place = next((place for place in places if (place / note).exists()), None)

    def of(self, uid: str) -> str:
        """The page of a run by its uid; empty where it is not known."""
        known = (read_json(self._place / _note(uid)) or {}) if self._place is not None else {}
        if not known.get("run_id") or self._place is None:
            return ""
        return f"{self._base}/#/experiments/{self._place.name.split('-')[0]}/runs/{known['run_id']}"


def _note(uid: str) -> str:
    return f"{short_uid(uid)}.json"


# -- curves and pictures ----------------------------------------------------------------------------------------------
def _newest(rows: Sequence[Options]) -> list[Options]:
    """Running steps first, then finished ones, each the newest attempt first."""
    tried = [row for row in rows if row["attempt"]]

    def written(row: Options) -> float:
        try:
            return StepFolder(Path(row["folder"])).attempt(row["attempt"]).path.stat().st_mtime
        except OSError:
            return 0.0

    live = [row for row in tried if row["state"] == "running"]
    rest = [row for row in tried if row["state"] != "running"][-200:]
    return [*sorted(live, key=written, reverse=True), *sorted(rest, key=written, reverse=True)]


def _curves(rows: Sequence[Options]) -> list[Curve]:
    found: list[Curve] = []
    for row in _newest(rows)[:40]:
        if len(found) >= MAX_CURVES:
            break
        folder = Path(row["folder"])
        sizes = [a.journal.stat().st_size for a in StepFolder(folder).attempts() if a.journal.exists()]
        if not sizes or sum(sizes) > MAX_JOURNAL_BYTES:
            continue
        lines = {k: v for k, v in curves(read_points(folder)).items() if not k.startswith(SYSTEM_PREFIX)}
        names = sorted(lines, key=lambda k: (not k.startswith("loss"), k))
        for metric in names[:2]:
            points = thin([(p.step, p.value) for p in lines[metric]], 200)
            if len(points) > 2 and len(found) < MAX_CURVES:
                found.append(_curve(f"{row['name']}: {metric}", points))
    return found


def _curve(title: str, points: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x0, width = xs[0], (xs[-1] - xs[0]) or 1.0
    low, height = min(ys), (max(ys) - min(ys)) or 1.0
    line = " ".join(f"{100 * (x - x0) / width:.2f},{40 - 40 * (y - low) / height:.2f}" for x, y in points)
    return Curve(title, line, number(low), number(max(ys)), number(ys[-1]), int(xs[-1]))


def _pictures(rows: Sequence[Options]) -> list[html.Picture]:
    """The newest pictures that steps show (`Attempt.show`): sample grids, reconstructions."""
    pictures: list[html.Picture] = []
    for row in [row for row in _newest(rows) if row["stage"] != "report"][:60]:  # a report's charts are shown above
        folder = Path(row["folder"])
        manifest = Manifest.read(folder)
        attempt = StepFolder(folder).attempt(manifest.attempt if manifest else row["attempt"])
        notes = None if manifest else Notes.read(attempt.path)
        shown = manifest.shown if manifest else notes.shown if notes else ()
        for name in reversed([n for n in shown if Path(n).suffix in html.MEDIA][-2:]):
            path = attempt.files / name
            with suppress(OSError):
                if path.stat().st_size <= MAX_PICTURE_BYTES:
                    pictures.append(html.picture(path.read_bytes(), path.suffix, name, f"{row['name']}: {name}"))
            if len(pictures) == MAX_PICTURES:
                return pictures
    return pictures
