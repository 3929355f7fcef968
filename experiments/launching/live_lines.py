"""One live line per running step at the foot of a terminal, drawn from the files that steps leave; else nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from experiments.console import duration, is_dumb, scaled, worded
from experiments.store.paths import StepFolder
from experiments.store.typed_json import Block
from launchers.calls import Call
from maskgit_core.files import read_json

PER_S = 2  # drawings
#: Values shown beside the bar; the log and `maskgit status` have the others.
SHOWN = ("loss", "masked_accuracy", "psnr", "tokens_per_s", "images_per_s")


class LiveLines:
    """The steps that run now; `with lines.shown(): ...` draws them while the block runs.

    Prints of this process appear above the lines. Nothing is drawn in a pipe or on a dumb terminal; NO_COLOR takes
    the colours.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[Call, float]] = {}
        self._display: Any = None

    def started(self, call: Call) -> None:
        """Adds a line."""
        self._running = {**self._running, call.key: (call, time.time())}
        self._draw()

    def ended(self, call: Call) -> None:
        """Takes its line away."""
        self._running = {key: value for key, value in self._running.items() if key != call.key}
        self._draw()

    def _draw(self) -> None:
        if self._display is not None:
            self._display.refresh()

    def shown(self) -> AbstractContextManager[object]:
        """Draws until the block ends, and then takes the lines away."""
        if not sys.stdout.isatty() or is_dumb():
            return nullcontext()
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stdout, highlight=False)
        self._display = Live(
            get_renderable=lambda: self._drawn(console), console=console, refresh_per_second=PER_S,
            transient=True,
        )  # fmt: skip
        return self._display  # type: ignore[no-any-return]

    def _drawn(self, console: Any) -> Any:
        from rich.text import Text

        running = list(self._running.values())
        shown = running[: max(1, console.height - 4)]
        width = max((len(call.name) for call, _ in shown), default=0)
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (call, since) in enumerate(shown):
            text.append("\n" if number else "").append(call.name.ljust(width) + " ", style="bold")
            note = _note(call, since)
            if note is None or not note.get("total"):
                text.append(duration(time.time() - since), style="dim")
                continue
            length = 20 if console.width >= 80 else 8
            full = min(length, int(length * note["done"] / note["total"]))
            marks = "━─" if "utf" in console.encoding else "#-"
            text.append(marks[0] * full, style="green").append(marks[1] * (length - full), style="dim")
            text.append(f" {note['done']}/{note['total']} {note['unit']}s  ")
            text.append("  ".join(_words(note)), style="dim")
        if len(shown) < len(running):
            text.append(f"\nand {len(running) - len(shown)} more", style="dim")
        return text


def _note(call: Call, since: float) -> Block | None:
    """The progress note of the newest attempt; None before it wrote one in this launch."""
    attempts = StepFolder(Path(call.args[0])).attempts()
    note = read_json(attempts[-1].progress) if attempts else None
    return note if isinstance(note, dict) and note.get("time", 0) >= since else None


def _words(note: Block) -> Sequence[str]:
    values, rate = note.get("values") or {}, note.get("rate") or 0.0
    words = worded({name: values[name] for name in SHOWN if name in values})
    if not any(name.endswith("_per_s") for name in values):
        words.append(f"{scaled(rate)} {note['unit']}s/s")
    if rate > 0:
        words.append(f"{duration((note['total'] - note['done']) / rate)} left")
    label = str(note.get("label") or "")
    return [label, *words] if label else words
