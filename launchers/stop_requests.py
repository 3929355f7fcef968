"""Requests to stop that reach a process which runs calls itself: none is lost, whoever handles signals meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """A handler of INT and TERM that remembers them.

    A call may take the signals over while it runs; it then passes what it gets on to `note`, so that a request that
    comes too late to stop the call still stops what would follow. INT that no call has taken over interrupts. Where
    one of these listens inside another, as in a call that launches calls itself, the outer one is told too.
    """

    def __init__(self) -> None:
        self.noted: int | None = None
        self.outer: StopRequests | None = None

    def note(self, number: int) -> None:
        """Remembers a signal that somebody else has handled."""
        self.noted = number
        if self.outer is not None:
            self.outer.note(number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.note(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles both signals in the block; earlier handlers come back at its end. Nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        outer = before[signal.SIGTERM]
        self.outer = outer if isinstance(outer, StopRequests) and outer is not self else None
        try:
            for number in SIGNALS:
                signal.signal(number, self)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
