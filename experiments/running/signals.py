"""Signals turned into a flag that stages look at between two units of work.

USR2 (SLURM's warning before a time limit or preemption): save and be requeued. TERM and INT: save and end. Handlers
only set the flag: saving inside a handler would run at an arbitrary bytecode.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from launchers.stop_requests import StopRequests


class StopFlag:
    """Raised by signals or when the time limit is near.

    Args:
        deadline: Unix time at which to stop by itself and ask to be requeued; None for no limit.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self.signal: int | None = None
        self._requests: StopRequests | None = None

    @classmethod
    def installed(cls) -> StopFlag:
        """A flag wired to USR2, TERM and INT of this process; MASKGIT_DEADLINE (Unix time) sets the limit."""
        deadline = os.environ.get("MASKGIT_DEADLINE")
        flag = cls(float(deadline) if deadline else None)
        before = signal.getsignal(signal.SIGTERM)
        if isinstance(before, StopRequests):
            flag._requests, flag.signal = before, before.noted
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, flag._raised)
        return flag

    def _raised(self, number: int, frame: FrameType | None) -> None:
        if self._requests is not None and number != signal.SIGUSR2:
            self._requests.note(number)  # it may come too late for this step, not for those after it
        # TERM after USR2 is SLURM's usual sequence: the requeue that USR2 asked for stays wanted.
        if self.signal != signal.SIGUSR2:
            self.signal = number

    def is_set(self) -> bool:
        """True once a signal came or the deadline passed."""
        return self.signal is not None or (self._deadline is not None and time.time() >= self._deadline)

    @property
    def wants_requeue(self) -> bool:
        """True where the reason to stop is a limit, not a wish to end: USR2 or the deadline."""
        return self.signal == signal.SIGUSR2 or (self.signal is None and self.is_set())
