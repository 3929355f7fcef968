"""How a benchmark prints what it measured: a JSON object a line, which `python -m tools.bench` puts on the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median

Measured = float | Sequence[float] | None


def figure(name: str, ours: Measured, theirs: Measured, unit: str, note: str, *, higher: bool = False) -> None:
    """Prints both sides of a comparison, with medians and ranges where there are several rounds.

    Args:
        ours, theirs: one number, or one per round; None where it could not be measured.
        higher: whether more is better. The ratio is above 1 where ours is better.
    """
    mine, other = _middle(ours), _middle(theirs)
    ratio = (mine / other if higher else other / mine) if mine and other else None
    line = {"name": name, "ours": _shown(ours), "theirs": _shown(theirs), "ratio": ratio and float(f"{ratio:.3g}")}
    print(json.dumps({**line, "unit": unit, "note": note}), flush=True)


def budget(name: str, measured: float | None, limit: float, unit: str, note: str) -> None:
    """Prints a number beside the most it may be; no peer, so no ratio."""
    line = {"name": name, "measured": _shown(measured), "limit": limit, "unit": unit, "note": note}
    print(json.dumps(line), flush=True)


def named(package: str) -> str:
    """A peer with its installed version, as notes name it."""
    return f"{package} {version(package)}"


def _middle(values: Measured) -> float | None:
    return median(values) if isinstance(values, Sequence) else values


def _shown(values: Measured) -> str:
    if values is None:
        return "not measured"
    if not isinstance(values, Sequence):
        return f"{values:.4g}"
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g}, {len(values)} rounds)"
