"""The time that a training takes, without what is no training, and the share of it spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Time since the last log line, and how much of it went into waiting for data."""

    def __init__(self, step: int) -> None:
        self._began, self._waited, self._step = time.perf_counter(), 0.0, step
        self._asked = 0.0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the time inside out of account: it is no training."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def waiting(self) -> Clock:
        """Counts the time inside as waiting."""
        return self

    def __enter__(self) -> None:
        self._asked = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._waited += time.perf_counter() - self._asked

    def lap(self, step: int) -> tuple[float, float, int]:
        """(seconds, share of them waited, steps) since the last lap; begins a new one."""
        now = time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        lap = seconds, self._waited / seconds, step - self._step
        self._began, self._waited, self._step = now, 0.0, step
        return lap
