"""The head of a page: what was run, when, where and by which command."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.config.specs import Input
from experiments.console import duration
from experiments.store.documents import Manifest, Record
from experiments.store.records import PipelineRecord, PipelineStep
from experiments.store.typed_json import Options

BOX, GAP_X, GAP_Y, HEIGHT, LETTER = 26, 18, 34, 30, 7.2  # of the drawing, in px


@dataclass(frozen=True)
class Box:
    """A step in the drawing of the DAG: centre, width, words."""

    x: float
    y: float
    width: float
    text: str
    note: str


@dataclass(frozen=True)
class Drawing:
    """The DAG, laid out: size, boxes, and edges from the foot of one box to the head of another."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class About:
    """The head of a page."""

    title: str
    description: str = ""
    command: str = ""
    facts: Sequence[tuple[str, str]] = ()
    dag: Drawing | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def about(record: PipelineRecord | None, inputs: Sequence[Input], title: str | None) -> About:
    """The head for an execution; what is not known is left out."""
    facts = _facts(inputs)
    if record is None:
        return About(title or "Report", facts=facts)
    return About(
        title or record.experiment.replace("_", " "),
        record.description,
        record.command,
        [("run", record.uid), *facts],
        drawing(record.steps),
    )


def _facts(inputs: Sequence[Input]) -> list[tuple[str, str]]:
    """Date, commit, compute time and hardware of the steps behind the page."""
    documents = [r for i in inputs if (r := Record.read(i.folder)) is not None]
    seconds = [m.seconds for i in inputs if (m := Manifest.read(i.folder)) is not None]
    facts: list[tuple[str, str]] = []
    if documents:
        first, last = min(r.started for r in documents), max(r.ended for r in documents)
        facts.append(("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last))))
        facts.append(("time", f"{duration(last - first)} from first to last; {duration(sum(seconds))} of steps' time"))
        commits = dict.fromkeys(commit_of(r) for r in documents)
        facts.append(("commit", ", ".join(c for c in commits if c) or "none"))
        machines = dict.fromkeys(_machine(r.machine) for r in documents)
        facts.append(("hardware", "; ".join(m for m in machines if m)))
        packages = documents[0].packages
        facts.append(("software", ", ".join(f"{n} {packages[n]}" for n in ("python", "torch") if n in packages)))
    return [(name, text) for name, text in facts if text]


def commit_of(record: Record) -> str:
    """The first twelve digits of a commit, and whether the working tree differed from it."""
    code = record.code
    return (code.commit or "")[:12] + (" + changes" if code.dirty else "")


def _machine(facts: Options) -> str:
    gpus = [str(name) for name in facts.get("gpus") or ()]
    cores = f"{facts['cores']} cores" if facts.get("cores") else ""
    what = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)] or ([f"{cores}, no GPU"] if cores else [])
    return f"{facts.get('host', '')}: {', '.join(what)}" if what else ""


# -- the DAG ----------------------------------------------------------------------------------------------------------
def drawing(steps: Sequence[PipelineStep]) -> Drawing | None:
    """Steps by level, items of a sweep as one box; None for fewer than two."""
    by_name: dict[str, list[PipelineStep]] = {}
    for step in steps:
        by_name.setdefault(step.step, []).append(step)
    owner = {key: step.step for step in steps for key in (step.fingerprint, step.name)}
    needs = {
        name: {owner[need] for step in group for need in step.needs if need in owner} - {name}
        for name, group in by_name.items()
    }
    if len(by_name) < 2:
        return None
    levels: dict[str, int] = {}
    while len(levels) < len(by_name):
        ready = [n for n in by_name if n not in levels and needs[n] <= levels.keys()]
        if not ready:  # needs that name each other cannot have run
            return None
        levels |= {name: 1 + max((levels[need] for need in needs[name]), default=-1) for name in ready}
    return _laid_out(by_name, needs, levels)


def _laid_out(
    by_name: Mapping[str, Sequence[PipelineStep]], needs: Mapping[str, set[str]], levels: Mapping[str, int]
) -> Drawing:
    texts = {n: n if len(group) == 1 else f"{n} x {len(group)}" for n, group in by_name.items()}
    widths = {name: len(text) * LETTER + BOX for name, text in texts.items()}
    rows: dict[int, list[str]] = {}
    for name in by_name:
        rows.setdefault(levels[name], []).append(name)
    totals = {level: sum(widths[n] for n in row) + GAP_X * (len(row) - 1) for level, row in rows.items()}
    whole = max(totals.values())
    places: dict[str, tuple[float, float]] = {}
    for level, row in sorted(rows.items()):
        x = (whole - totals[level]) / 2
        middle = {n: sum(places[m][0] for m in needs[n]) / len(needs[n]) if needs[n] else 0.0 for n in row}
        for name in sorted(row, key=lambda n: middle[n]):
            places[name] = (x + widths[name] / 2, level * (HEIGHT + GAP_Y) + HEIGHT / 2 + 1)
            x += widths[name] + GAP_X
    boxes = [Box(*places[n], widths[n], texts[n], f"stage {group[0].stage}") for n, group in by_name.items()]
    edges = [
        (places[need][0], places[need][1] + HEIGHT / 2, places[name][0], places[name][1] - HEIGHT / 2)
        for name in by_name
        for need in sorted(direct(name, needs))
    ]
    return Drawing(whole + 2, len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2, tuple(boxes), tuple(edges))


def direct(name: str, needs: Mapping[str, set[str]]) -> set[str]:
    """The needs of a step, less those it also has through another step."""
    through: set[str] = set()
    above = list(needs[name])
    while above:
        for need in needs[above.pop()] - through:
            through.add(need)
            above.append(need)
    return needs[name] - through
