"""A sweep on a page: the score over each swept value, and a card per setting with samples of the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.config.specs import Input
from experiments.console import number
from experiments.reporting.numbers import headline_of, label_of, scores_of
from experiments.reporting.pictures import strip
from experiments.results import html
from experiments.results.plots import Mark, pareto_front, scatter_figure, value_figure
from experiments.store.scores import Score, describe_metric
from experiments.store.typed_json import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CARDS = 60


@dataclass(frozen=True)
class Card:
    """One setting: its values, its number and samples."""

    rank: int
    values: str
    score: str
    more: str
    picture: html.Picture | None


def headlines(inputs: Sequence[Input]) -> list[tuple[Input, Score]]:
    """The items that share the first item's headline and the way it was measured, best first."""
    heads = [(item, head) for item in inputs if (head := headline_of(item)) is not None]
    alike = [(item, head) for item, head in heads if head.comparable == heads[0][1].comparable]
    known = describe_metric(heads[0][1].name) if heads else None
    falling = known is not None and known[1] is False
    return sorted(alike, key=lambda pair: (math.isnan(pair[1].value), -pair[1].value if falling else pair[1].value))


def cards(ranked: Sequence[tuple[Input, Score]]) -> list[Card]:
    """A card for each setting, best first."""
    made = []
    for rank, (item, head) in enumerate(ranked[:MAX_CARDS], 1):
        values = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in item.params.items()) or item.name
        others = [f"{s.key} {number(s.value)}" for s in scores_of(item) if s.key != head.key and s.of == head.of]
        picture = strip(item) if item.kind == "scores" else None
        made.append(Card(rank, values, number(head.value), "  ".join(others[:3]), picture))
    return made


def over_values(ranked: Sequence[tuple[Input, Score]]) -> Figure | None:
    """A panel for each swept key with several values: the score of every setting over the value."""
    panels: dict[str, list[tuple[Any, float]]] = {}
    for item, score in ranked:
        for key, value in item.params.items():
            panels.setdefault(key, []).append((value, score.value))
    several = {k: points for k, points in panels.items() if len({str(v) for v, _ in points}) > 1}
    if not several:
        return None
    name = ranked[0][1].name
    known = describe_metric(name)
    return value_figure(several, name, lower=known is None or known[1] is not False)


def front(inputs: Sequence[Input]) -> tuple[Figure, str] | None:
    """The first score over the next one that varies, with the Pareto front, and a caption; None for one score."""
    read = {item.fingerprint: scores_of(item) for item in inputs}
    columns = {s.comparable: s for scores in read.values() for s in scores}
    values = {c: {s.value for scores in read.values() for s in scores if s.comparable == c} for c in columns}
    varying = [c for c in columns if len(values[c]) > 1]
    if len(varying) < 2:
        return None
    y, x = columns[varying[0]], columns[varying[1]]
    groups: dict[str, list[Mark]] = {}
    for item in inputs:
        own = {s.comparable: s.value for s in read[item.fingerprint]}
        if x.comparable in own and y.comparable in own:
            parts = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in item.params.items()]
            mark = Mark(", ".join(parts[1:]), own[x.comparable], own[y.comparable])
            groups.setdefault(", ".join(parts[:1]), []).append(mark)
    lower = [bool((describe_metric(s.name) or ("", True))[1]) for s in (x, y)]
    best = pareto_front([m for g in groups.values() for m in g], lower_x=lower[0], lower_y=lower[1])
    return scatter_figure(groups, x.key, y.key, best), f"{y.key} over {x.key}; dashed: the Pareto front"


def table(inputs: Sequence[Input]) -> Block:
    """A row per item, a column per score; scores of unlike protocols get columns of their own."""
    read = {item.fingerprint: scores_of(item) for item in inputs}
    columns = {s.comparable: s for scores in read.values() for s in scores}
    rows = []
    for item in inputs:
        values = {s.comparable: f"{s.value:.5g}" for s in read[item.fingerprint]}
        rows.append([label_of(item), *(values.get(c, "—") for c in columns)])
    return {"header": ["", *(f"{s.key} ({s.num_images} pictures)" for s in columns.values())], "rows": rows}
