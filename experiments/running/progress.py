"""Progress of long work: lines in the step's log, and a small file for `maskgit run` and `maskgit status`.

Nothing here draws on a terminal: whoever watches a step reads the file (`experiments/launching/live_lines.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.console import duration, scaled, worded
from maskgit_core.files import remember

LINE_EVERY_S = 15.0


class Progress:
    """Iterate it, or call `update(n)`; leaves rate and time left in the log and in a file.

    Args:
        work: an iterable, or the total number of units (None: unknown).
        unit: name of one unit ("step", "image").
        label: what is being done; it begins a line of the log.
        file: where to leave `{"done", "total", "unit", "label", "rate", "values", "time"}` once a second for others.
        line_every_s: seconds between lines of the log, for work that does not call `line` itself.
    """

    def __init__(
        self,
        work: Iterable[Any] | int | None,
        *,
        unit: str = "it",
        label: str = "",
        file: Path | None = None,
        line_every_s: float = LINE_EVERY_S,
    ) -> None:
        self._iterable = None if work is None or isinstance(work, int) else work
        total = work if isinstance(work, int) else (len(work) if hasattr(work, "__len__") else None)  # type: ignore[arg-type]
        self.total, self.unit, self.label, self.done = total, unit, label, 0
        self._file, self._line_every_s, self._speaks = file, line_every_s, True
        self._first = self._noted = self._said = time.monotonic()
        self._start_count = 0
        self._values: dict[str, float] = {}
        self._closed = False

    def start_at(self, done: int) -> None:
        """Sets the units already done before this process began (they do not count towards the rate)."""
        self.done = self._start_count = done

    def update(self, count: int = 1) -> None:
        """Counts `count` more units; a line of the log where the last one is long ago."""
        self.done += count
        now = time.monotonic()
        if self._file is not None and (now - self._noted > 1.0 or self.done == self.total):
            self._leave_note(now)
        if self._speaks and now - self._said > self._line_every_s and self.done != self.total:
            self._say(now)

    def line(self, **values: float) -> None:
        """Prints units done, `values`, rate, memory and time left as a line of the log; `values` go to watchers too.

        The first call ends the lines that come by themselves: the caller has an interval of its own.
        """
        self._speaks, self._values = False, dict(values)
        now = time.monotonic()
        if self._file is not None:
            self._leave_note(now)
        self._say(now)

    def _say(self, now: float) -> None:
        self._said = now
        count = f"{self.done}{'' if self.total is None else f'/{self.total}'}"
        words = [f"{self.label}: {self.unit} {count}" if self.label else f"{self.unit} {count}", *worded(self._values)]
        rate = self._rate(now)
        words += [] if any(name.endswith("_per_s") for name in self._values) else [f"{scaled(rate)} {self.unit}s/s"]
        words += [f"{memory_gb():.1f} GB"]
        if self.total is not None and rate > 0:
            words.append(f"{duration((self.total - self.done) / rate)} left")
        print("  ".join(words), flush=True)

    def _rate(self, now: float) -> float:
        return (self.done - self._start_count) / max(now - self._first, 1e-6)

    def _leave_note(self, now: float) -> None:
        self._noted = now
        note = {"done": self.done, "total": self.total, "unit": self.unit, "label": self.label, "rate": self._rate(now)}
        assert self._file is not None
        remember(self._file, {**note, "values": self._values, "time": time.time()})  # never stops the work

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise TypeError("Progress over a total cannot be iterated; call update(n)")
        for item in self._iterable:
            yield item
            self.update(1)
        self.close()

    def close(self) -> None:
        """States in the log how much was done in what time, where no line of the caller's did."""
        now = time.monotonic()
        if self._speaks and not self._closed and self.done > self._start_count:
            what = f"{self.label}: " if self.label else ""
            made = self.done - self._start_count
            print(f"{what}{made} {self.unit}s in {duration(now - self._first)}  {memory_gb():.1f} GB", flush=True)
        self._closed = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def memory_gb() -> float:
    """The most GPU memory this process had allocated, else its resident memory; 10^9 bytes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e9
