"""Plain text for people: tables, durations, sizes. Colour only on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

COLOURS = {"green": "32", "red": "31", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}


def coloured(text: str, colour: str | None) -> str:
    """`text` in a colour where standard output is a terminal that can, and NO_COLOR is unset."""
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or is_dumb():
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def is_dumb() -> bool:
    """True where the terminal can move no cursor and show no colour."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def table(rows: Sequence[Sequence[str]], colours: Sequence[str | None] = (), indent: str = "  ") -> str:
    """Rows with aligned columns; the last is not padded, and on a terminal it goes on below itself where it is wide."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        before = indent + "".join(f"{cell}  " for cell in cells)
        colour = colours[number] if number < len(colours) else None
        last = _wrapped(row[-1], len(before))
        lines += [coloured((before if n == 0 else " " * len(before)) + part, colour) for n, part in enumerate(last)]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, start: int) -> list[str]:
    """The lines of a text that begins in column `start` of a terminal; one line where there is none or no room."""
    room = shutil.get_terminal_size().columns - start if sys.stdout.isatty() and not is_dumb() else 0
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) if room >= 30 and text else [text]


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


def scaled(value: float) -> str:
    """A rate or count with three significant digits: `8.42k`, `1.2M`, `0.31`."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5 or unit == "G":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def worded(values: Mapping[str, float]) -> list[str]:
    """Values as words of a line: `loss 2.31`, and `8.4k tokens/s` of a value named `tokens_per_s`."""
    words = []
    for name, value in values.items():
        what, rate, _ = name.partition("_per_s")
        words.append(f"{scaled(value)} {what}/s" if rate else f"{name.replace('_', ' ')} {number(value)}")
    return words
