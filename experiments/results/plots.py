"""Charts for reports, comparisons and tables; the same data gives the same bytes. Matplotlib is loaded on use."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.store.journal import SYSTEM_PREFIX, Point, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: Any = {
    "svg.hashsalt": "maskgit",
    "svg.fonttype": "path",
    "font.size": 8.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "text.parse_math": False,  # a `$` in a run's name is a dollar sign
}
#: Ink of charts on pages; `html.for_dark_pages` lightens it where a page is dark.
INK = "#1b1c1d"
ON_PAGE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.color": "#808080",
}
#: Metric (its part before `/`) -> what its axis says.
UNITS = {
    "masked_accuracy": "masked tokens named rightly (share)",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "ema_distance": "distance of the averaged weights",
    "psnr": "PSNR (dB)",
    "held_out_psnr": "held-out PSNR (dB)",
    "l1": "L1 (range -1 ... 1)",
    "code_perplexity": "codebook perplexity (codes)",
    "held_out_code_perplexity": "held-out codebook perplexity (codes)",
    "code_usage": "codes in use (share)",
    "held_out_code_usage": "held-out codes in use (share)",
    "held_out_nll": "held-out NLL (nats per token)",
}
MAX_POINTS = 400  # a line; more cannot be seen
MAX_PANELS = 12


@dataclass(frozen=True)
class Line:
    """A named sequence of (x, y)."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """A run in a scatter chart."""

    label: str
    x: float
    y: float


def save(figure: Figure, path: Path) -> bytes:
    """Writes a figure as PNG or SVG (by suffix) without time or version in it; returns the bytes."""
    data = rendered(figure, path.suffix[1:])
    path.write_bytes(data)
    return data


def rendered(figure: Figure, form: str, *, on_page: bool = False) -> bytes:
    """The bytes of a figure as `png` or `svg`; `on_page`: transparent. The figure is closed by its owner."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[form]
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format=form, metadata=nothing, facecolor="none" if on_page else "white")
    return buffer.getvalue()


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure without a display or global state, and its axes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**SETTINGS, **ON_PAGE}):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [axis for row in axes for axis in row]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> tuple[tuple[float, float], ...]:
    """At most `limit` points, evenly chosen, first and last kept; NaN and infinities left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= limit:
        return tuple(finite)
    return tuple(finite[round(i * (len(finite) - 1) / (limit - 1))] for i in range(limit))


def panels(runs: Mapping[str, Sequence[Point]]) -> dict[str, list[Line]]:
    """Curves of several runs arranged in panels: names with the same part before `/` share one (`loss/mask_0.2`).

    Metrics of the machine and those with a single point are left out.
    """
    by_panel: dict[str, list[Line]] = {}
    for run, points in runs.items():
        for metric, line in curves(points).items():
            if metric.startswith(SYSTEM_PREFIX) or len(line) < 2:
                continue
            panel, _, inner = re.sub(r"_q(\d)$", r"/quarter \1", metric).partition("/")
            label = " ".join(part for part in (run if len(runs) > 1 else "", inner) if part)
            by_panel.setdefault(panel, []).append(Line(label, thin([(p.step, p.value) for p in line])))
    names = sorted(by_panel, key=lambda n: (not n.startswith("loss"), n))
    return {name: by_panel[name] for name in names[:MAX_PANELS]}


def curve_figure(
    arranged: Mapping[str, Sequence[Line]], x: str = "optimizer step", titles: Mapping[str, str] | None = None
) -> Figure | None:
    """A grid of line charts, one a panel; None where there is nothing to draw. `titles` come before `UNITS`."""
    if not arranged:
        return None
    import matplotlib as mpl

    columns = min(3, len(arranged))
    figure, axes = _figure(math.ceil(len(arranged) / columns), columns, 3.2, 2.3)
    with mpl.rc_context(SETTINGS):
        for axis, (name, lines) in zip(axes, arranged.items(), strict=False):
            for line in lines[:12]:
                axis.plot([p[0] for p in line.points], [p[1] for p in line.points], lw=1.1, label=line.label or None)
            axis.set_title({**UNITS, **(titles or {})}.get(name, name.replace("_", " ")), fontsize=8)
            axis.set_xlabel(x)
            if any(line.label for line in lines):
                axis.legend(fontsize=6, frameon=False, title=None if len(lines) <= 12 else f"12 of {len(lines)}")
        for axis in axes[len(arranged) :]:
            axis.set_visible(False)
    return figure


def pareto_front(marks: Sequence[Mark], *, lower_x: bool = True, lower_y: bool = True) -> list[Mark]:
    """The marks that no other beats in both directions, by growing x; of equal marks the first stays."""

    def key(mark: Mark) -> tuple[float, float]:
        return (mark.x if lower_x else -mark.x, mark.y if lower_y else -mark.y)

    front: list[Mark] = []
    for mark in sorted((m for m in marks if math.isfinite(m.x) and math.isfinite(m.y)), key=key):
        if not front or key(mark)[1] < key(front[-1])[1]:
            front.append(mark)
    return sorted(front, key=lambda m: m.x)


def scatter_figure(
    groups: Mapping[str, Sequence[Mark]], x: str, y: str, front: Sequence[Mark] = (), *, joined: bool = True
) -> Figure:
    """Runs as dots: one colour (and line, where `joined`) a group, labels beside them, the Pareto front dashed."""
    import matplotlib as mpl

    figure, axes = _figure(1, 1, 5.4, 3.8)
    axis = axes[0]
    with mpl.rc_context(SETTINGS):
        for name, marks in groups.items():
            style = "o-" if joined and len(marks) > 1 else "o"
            axis.plot([m.x for m in marks], [m.y for m in marks], style, ms=4, lw=1, label=name or None)
            for mark in marks:
                axis.annotate(mark.label, (mark.x, mark.y), xytext=(4, 3), textcoords="offset points", fontsize=6)
        if front:
            axis.plot(
                [m.x for m in front], [m.y for m in front], "--", color=INK, lw=0.9, label="Pareto front", zorder=0
            )
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        if any(groups) or front:
            axis.legend(fontsize=7, frameon=False)
    return figure


def value_figure(panels: Mapping[str, Sequence[tuple[Any, float]]], score: str, *, lower: bool = True) -> Figure:
    """Small multiples: for each key the score of every setting over its value, and a line through the best of each.

    Args:
        panels: key -> (value, score) of every setting; values that are no numbers stand in order of appearance.
        lower: lower scores are better.
    """
    import matplotlib as mpl

    columns = min(3, len(panels))
    figure, axes = _figure(math.ceil(len(panels) / columns), columns, 3.2, 2.4)
    with mpl.rc_context(SETTINGS):
        for axis, (key, points) in zip(axes, panels.items(), strict=False):
            numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v, _ in points)
            names = [] if numeric else list(dict.fromkeys(str(v) for v, _ in points))
            places = [float(v) if numeric else float(names.index(str(v))) for v, _ in points]
            best: dict[float, float] = {}
            for x, (_, y) in zip(places, points, strict=True):
                best[x] = (min if lower else max)(best.get(x, y), y)
            axis.plot(places, [y for _, y in points], "o", ms=3.5, alpha=0.55)
            axis.plot(sorted(best), [best[x] for x in sorted(best)], "-", lw=1.1)
            if names:
                axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=6)
            elif min(places) > 0 and max(places) / min(places) >= 50:
                axis.set_xscale("log")
            axis.set_xlabel(key)
            axis.set_ylabel(score)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
    return figure
