"""Plain text for people: tables, durations, sizes. Colour only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COLOURS = {"green": "32", "red": "31", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}


def coloured(text: str, colour: str | None) -> str:
    """`text` in a colour where standard output is a terminal and NO_COLOR is unset."""
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def table(rows: Sequence[Sequence[str]], colours: Sequence[str | None] = (), indent: str = "  ") -> str:
    """Rows with aligned columns; the last column is not padded."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        line = indent + "  ".join([*cells, row[-1]]).rstrip()
        lines.append(coloured(line, colours[number] if number < len(colours) else None))
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """`1h02m`, `3m05s`, `12s`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"


def size(count: float) -> str:
    """Bytes as `3.1 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def number(value: float) -> str:
    """A metric's value with four significant digits."""
    return f"{value:.4g}"
