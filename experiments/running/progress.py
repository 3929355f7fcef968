"""Progress of long work: a bar on a terminal, a small file for `maskgit status`, silence elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.console import duration
from maskgit_core.files import remember


class Progress:
    """Iterate it, or call `update(n)`; shows rate and time left.

    Args:
        work: an iterable, or the total number of units (None: unknown).
        unit: name of one unit ("step", "image").
        file: where to leave `{"done", "total", "unit", "rate", "time"}` once a second for other processes to read.
    """

    def __init__(
        self, work: Iterable[Any] | int | None, *, unit: str = "it", label: str = "", file: Path | None = None
    ) -> None:
        self._iterable = None if work is None or isinstance(work, int) else work
        total = work if isinstance(work, int) else (len(work) if hasattr(work, "__len__") else None)  # type: ignore[arg-type]
        self.total, self.unit, self.label, self.done = total, unit, label, 0
        self._file = file
        self._first = self._last = time.monotonic()
        self._start_count = 0
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, desc=label or None, dynamic_ncols=True, leave=False)

    def start_at(self, done: int) -> None:
        """Sets the units already done before this process began (they do not count towards the rate)."""
        self.done = self._start_count = done
        if self._bar is not None:
            self._bar.initial = done
            self._bar.n = done

    def update(self, count: int = 1, **values: object) -> None:
        """Counts `count` more units; `values` are shown beside the bar."""
        self.done += count
        if self._bar is not None:
            if values:
                self._bar.set_postfix(values, refresh=False)
            self._bar.update(count)
        now = time.monotonic()
        if self._file is not None and (now - self._last > 1.0 or self.done == self.total):
            self._last = now
            self._leave_note(now)

    def line(self, **values: float) -> None:
        """Prints units done, `values`, rate and time left as a line of the log; nothing where there is a bar."""
        if self._bar is not None:
            return
        rate = (self.done - self._start_count) / max(time.monotonic() - self._first, 1e-6)
        words = [f"{self.unit} {self.done}{'' if self.total is None else f'/{self.total}'}"]
        words += [f"{name} {value:.4g}" for name, value in values.items()]
        words.append(f"{rate:.3g} {self.unit}s/s")
        if self.total is not None and rate > 0:
            words.append(f"{duration((self.total - self.done) / rate)} left")
        print("  ".join(words), flush=True)

    def _leave_note(self, now: float) -> None:
        rate = (self.done - self._start_count) / max(now - self._first, 1e-6)
        note = {"done": self.done, "total": self.total, "unit": self.unit, "label": self.label, "rate": rate}
        assert self._file is not None
        remember(self._file, {**note, "time": time.time()})  # an unwritable note never stops the work

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise TypeError("Progress over a total cannot be iterated; call update(n)")
        for item in self._iterable:
            yield item
            self.update(1)
        self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
