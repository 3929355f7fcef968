"""Runs side by side: the keys in which they differ, and metrics lined up only where they may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.console import number
from experiments.monitoring.usage import step_hours
from experiments.results import html
from experiments.results.plots import Mark, curve_figure, panels, pareto_front, rendered, scatter_figure
from experiments.results.results import Result, Spread, by_seed
from experiments.store.documents import Request
from experiments.store.journal import Point, read_points
from experiments.store.scores import Score, describe_metric, unlike

UNSET = "—"
MAX_COLUMNS = 4


@dataclass(frozen=True)
class Side:
    """One column of a comparison: a run, or runs that differ only in their seeds."""

    label: str
    results: tuple[Result, ...]

    @property
    def config(self) -> Mapping[str, str]:
        """Config of the first run, swept seeds of all."""
        first = dict(self.results[0].config)
        for key in self.results[0].seeds:
            first[key] = ", ".join(dict.fromkeys(r.config.get(key, UNSET) for r in self.results))
        return first

    @property
    def hours(self) -> tuple[float, float]:
        """Hours and GPU-hours of all attempts of its runs and of what they were made from, each step once."""
        folders = {folder for result in self.results for folder in (result.folder, *result.upstream)}
        spent = [step_hours(folder) for folder in sorted(folders)]
        return sum(hours for hours, _ in spent), sum(gpu_hours for _, gpu_hours in spent)


@dataclass(frozen=True)
class MetricRow:
    """One metric under one protocol; sides measured otherwise have a row of their own."""

    title: str
    protocol: str
    values: Mapping[str, Spread]  # side label -> value


@dataclass(frozen=True)
class Comparison:
    """The content of `maskgit compare`."""

    sides: tuple[Side, ...]
    differing: Mapping[str, tuple[str, ...]]  # key -> value a side
    metrics: tuple[MetricRow, ...]
    refused: tuple[str, ...] = field(default=())  # why numbers were not lined up


def compare(results: Sequence[Result], *, group_seeds: bool = True) -> Comparison:
    """Lines results up; with `group_seeds` runs that differ only in swept seeds become one side with mean ± std."""
    groups = by_seed(results) if group_seeds else [[r] for r in results]
    sides = tuple(Side(label, tuple(group)) for label, group in zip(_labels(groups), groups, strict=True))
    metrics, refused = _metrics(sides)
    return Comparison(sides, _differing(sides), metrics, (*refused, *_other_code(sides)))


def _other_code(sides: Sequence[Side]) -> list[str]:
    """Sides that differ in nothing but the code that made them, which are never averaged."""
    alike: dict[tuple[object, ...], list[Side]] = {}
    for side in sides:
        first = side.results[0]
        alike.setdefault((first.experiment, first.step, first.without_seeds), []).append(side)
    notes = []
    for members in alike.values():
        codes = [set(side.results[0].code) for side in members]
        changed = sorted({line.split()[0] for code in codes for line in code ^ codes[0]})
        if changed:
            labels = ", ".join(side.label for side in members)
            notes.append(f"{labels}: not averaged (made by different code: {', '.join(changed[:4])})")
    return notes


def _labels(groups: Sequence[Sequence[Result]]) -> list[str]:
    """A short distinct name a side: step name, with experiment and run where it does not tell them apart."""
    firsts = [g[0] for g in groups]
    for form in (lambda r: _plain(r), lambda r: f"{r.experiment}/{_plain(r)}", lambda r: r.run):
        labels = [form(r) for r in firsts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{r.run} ({r.fingerprint[:8]})" for r in firsts]


def _plain(result: Result) -> str:
    kept = {k: v for k, v in result.params.items() if not k.endswith(".seed")}
    values = ",".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in kept.items())
    return f"{result.step}[{values}]" if values else result.step


def _differing(sides: Sequence[Side]) -> dict[str, tuple[str, ...]]:
    configs = [s.config for s in sides]
    keys = sorted({k for c in configs for k in c})
    rows = {k: tuple(c.get(k, UNSET) for c in configs) for k in keys}
    return {k: v for k, v in rows.items() if len(set(v)) > 1}


def _metrics(sides: Sequence[Side]) -> tuple[tuple[MetricRow, ...], tuple[str, ...]]:
    """One row a metric and way of measuring; a note for each pair that was kept apart."""
    rows: list[MetricRow] = []
    refused: list[str] = []
    keys = dict.fromkeys(s.key for side in sides for r in side.results for s in r.scores)
    for key in keys:
        ways: dict[str, tuple[Score, dict[str, list[float]]]] = {}
        for side in sides:
            for result in side.results:
                for score in (s for s in result.scores if s.key == key):
                    _, values = ways.setdefault(score.comparable, (score, {}))
                    values.setdefault(side.label, []).append(score.value)
        firsts = [score for score, _ in ways.values()]
        refused += [f"{key}: not lined up ({unlike(firsts[0], other)})" for other in firsts[1:]]
        for score, values in ways.values():
            title = describe_metric(key)
            name = f"{key} ({title[0]})" if title and title[0].lower() != key else key
            rows.append(MetricRow(name, _protocol(score), {k: Spread.of(v) for k, v in values.items()}))
    return tuple(rows), tuple(dict.fromkeys(refused))


def _protocol(score: Score) -> str:
    count = f", {score.num_images} images" if score.num_images is not None else ""
    return f"{score.protocol or 'unnamed'}{count}"


# -- showing ----------------------------------------------------------------------------------------------------------
def as_rows(comparison: Comparison) -> list[list[str]]:
    """A text table: header, differing keys, metrics."""
    rows = [["", *(s.label for s in comparison.sides)]]
    rows += [[key, *values] for key, values in comparison.differing.items()]
    for row in comparison.metrics:
        cells = [_value(row.values.get(s.label)) for s in comparison.sides]
        rows.append([f"{row.title} [{row.protocol}]", *cells])
    if hours := _hours(comparison):
        rows.append(hours)
    return rows


def _hours(comparison: Comparison) -> list[str]:
    """The bill of each side: GPU-hours, or hours where no GPU was used; nothing where no times are known."""
    spent = [side.hours for side in comparison.sides]
    on_gpus = any(gpu_hours for _, gpu_hours in spent)
    if not any(hours for hours, _ in spent):
        return []
    title = "GPU-hours, with all upstream" if on_gpus else "hours, with all upstream (no GPU)"
    return [title, *(f"{gpu_hours if on_gpus else hours:.2f}" for hours, gpu_hours in spent)]


def _value(spread: Spread | None) -> str:
    if spread is None:
        return UNSET
    return number(spread.mean) + (f" ± {number(spread.std)} (n={spread.count})" if spread.std is not None else "")


def as_json(comparison: Comparison) -> dict[str, object]:
    """Plain data for scripts."""
    return {
        "sides": [
            {
                "label": s.label,
                "runs": [r.run for r in s.results],
                "commits": sorted({r.commit for r in s.results}),
                "hours": s.hours[0],
                "gpu_hours": s.hours[1],
            }
            for s in comparison.sides
        ],
        "differing": {
            k: dict(zip([s.label for s in comparison.sides], v, strict=True)) for k, v in comparison.differing.items()
        },
        "metrics": [
            {
                "metric": row.title,
                "protocol": row.protocol,
                "values": {k: {"mean": v.mean, "std": v.std, "count": v.count} for k, v in row.values.items()},
            }
            for row in comparison.metrics
        ],
        "refused": list(comparison.refused),
    }


def page(comparison: Comparison, *, x: str | None = None, y: str | None = None) -> str:
    """A self-contained page: differences, metrics, training curves, and a chart of two metrics where asked."""
    header = ["", *(html.Cell(s.label.replace(",", ", "), note=_origin(s)) for s in comparison.sides)]
    differing = [
        [key, *(html.Cell(v, style="differs" if v != values[0] else None) for v in values)]
        for key, values in comparison.differing.items()
    ]
    metrics = [
        [f"{row.title} [{row.protocol}]", *(_value(row.values.get(s.label)) for s in comparison.sides)]
        for row in comparison.metrics
    ]
    chart = None
    if x and y:
        caption = f"{y} over {x}"
        chart = html.picture(chart_of(comparison, x, y), ".svg", caption, f"{caption}; dashed: Pareto front")
    return html.render(
        "comparison",
        title="Comparison",
        differing=_laid_out([header, *differing]) if differing else None,
        metrics=_laid_out([header, *metrics]),
        refused=comparison.refused,
        curves=_curves(comparison),
        chart=chart,
    )


def _laid_out(rows: Sequence[Sequence[object]]) -> Sequence[Sequence[object]]:
    """A column per side, as long as they fit a page; of many, a row per side."""
    return list(zip(*rows, strict=True)) if len(rows[0]) > MAX_COLUMNS else rows


def _origin(side: Side) -> str:
    return "; ".join(f"{r.run} at {r.commit[:12] or 'no commit'}" for r in side.results)


def _curves(comparison: Comparison) -> html.Picture | None:
    """Curves of the models behind the sides; a model shared by several is drawn once."""
    runs: dict[str, Sequence[Point]] = {}
    seen: set[Path] = set()
    for side in comparison.sides:
        for result in side.results:
            for folder in result.upstream:
                if folder not in seen and Request.needed(folder).kind == "model":
                    seen.add(folder)
                    runs[side.label if side.label not in runs else f"{side.label} ({folder.name})"] = read_points(
                        folder
                    )
    figure = curve_figure(panels(runs))
    return html.picture(rendered(figure, "svg"), ".svg", "training curves", "") if figure is not None else None


def chart_of(comparison: Comparison, x: str, y: str, form: str = "svg") -> bytes:
    """`y` over `x`, each a metric or a numeric config key; one dot a side, lines along the last varied key.

    A chart of two metrics also shows the Pareto front (FID over IS of a sampler sweep).
    """
    groups: dict[str, list[Mark]] = {}
    places = [(side, _coordinate(side, x), _coordinate(side, y)) for side in comparison.sides]
    drawn = [side for side, across, up in places if across is not None and up is not None]
    varied = [k for k in _differing(drawn) if not k.endswith(".seed") and k not in (x, y)]
    for side, across, up in places:
        if across is None or up is None:
            continue
        series, rest = _described(side, varied[:1]), _described(side, varied[1:3])
        groups.setdefault(series, []).append(Mark(rest, across, up))
    marks = [m for group in groups.values() for m in group]
    directions = [describe_metric(name) for name in (x, y)]
    front = []
    if all(directions):
        lower = [bool(d and d[1]) for d in directions]
        front = pareto_front(marks, lower_x=lower[0], lower_y=lower[1])
    ordered = {name: sorted(group, key=lambda m: m.x) for name, group in groups.items()}
    return rendered(scatter_figure(ordered, x, y, front), form)


def _described(side: Side, keys: Sequence[str]) -> str:
    return ", ".join(f"{k.rsplit('.', 1)[-1]}={side.config.get(k, UNSET)}" for k in keys)


def _coordinate(side: Side, name: str) -> float | None:
    values = [v for r in side.results if (v := r.value(name)) is not None]
    try:
        return Spread.of([float(v) for v in values]).mean if values else None
    except ValueError:
        return None
