"""Signals turned into a flag that stages look at between two units of work.

USR2 (SLURM's warning before a time limit or preemption): save and be requeued. TERM and INT: save and end. Handlers
only set the flag: saving inside a handler would run at an arbitrary bytecode.
"""

from __future__ import annotations

import signal
from types import FrameType

from launchers.stop_requests import StopRequests


class StopFlag:
    """Raised by signals; SLURM sends USR2 before a time limit."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requests: StopRequests | None = None

    @classmethod
    def installed(cls) -> StopFlag:
        """A flag wired to USR2, TERM and INT of this process."""
        flag = cls()
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
        """True once a signal came."""
        return self.signal is not None

    @property
    def wants_requeue(self) -> bool:
        """True where the reason to stop is a limit, not a wish to end: USR2."""
        return self.signal == signal.SIGUSR2
