"""Runs calls one after another inside this process: for debuggers, notebooks and tests."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from typing import TextIO

from launchers.calls import (
    CONTINUE,
    STOPPED,
    Call,
    Event,
    LaunchContext,
    LauncherProtocol,
    OnEvent,
    Outcome,
    first_obstacle,
    rank_variables,
    resolve,
    topological,
)
from launchers.stop_requests import StopRequests


class Launcher(LauncherProtocol):
    """One process, one call at a time, whatever ranks a call asks for."""

    is_detached = False
    echoes = True

    def __init__(self) -> None:
        pass

    def check(self, calls: Sequence[Call]) -> list[str]:
        """Nothing to refuse: whatever a call asks for, it runs here."""
        return []

    def launch(
        self, calls: Sequence[Call], *, on_event: OnEvent | None = None, context: LaunchContext | None = None
    ) -> dict[str, Outcome]:
        """Executes all calls whose needs ended well; returns how each ended.

        Raises:
            KeyboardInterrupt: Ctrl-C while a call ran that did not handle it itself.
        """
        tell = on_event or (lambda event: None)
        outcomes: dict[str, Outcome] = {}
        stopped, requests = False, StopRequests()
        for call in topological(calls):
            if stopped:
                outcomes[call.key] = Outcome("stopped", message="not started")
            elif obstacle := first_obstacle(call, outcomes):
                outcomes[call.key] = Outcome("blocked", message=f"needs {obstacle}")
                tell(Event("blocked", call, f"needs {obstacle}"))
            else:
                tell(Event("started", call))
                with requests.listening():
                    outcome = outcomes[call.key] = _execute(call)
                stopped = outcome.state == "stopped" or requests.noted is not None
                kind = {"done": "finished"}.get(outcome.state, outcome.state)
                tell(Event(kind, call, outcome.message, outcome.seconds, outcome))
        return outcomes


def _execute(call: Call) -> Outcome:
    began = time.monotonic()
    try:
        with _environment(call), _copied_output(call):
            try:
                code = resolve(call.target)(*call.args) or 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except Exception:
                traceback.print_exc()
                code = 1
    except OSError as error:
        return Outcome("failed", 1, f"{call.log}: {error.strerror}", time.monotonic() - began)
    seconds = time.monotonic() - began
    if code == 0:
        return Outcome("done", seconds=seconds)
    # A call that wants to be continued is not run again here: the signal was meant for this very process.
    if code == CONTINUE or code in STOPPED:
        return Outcome("stopped", code, "saved; run the same command to go on", seconds)
    return Outcome("failed", code, f"exit code {code}", seconds)


@contextlib.contextmanager
def _environment(call: Call) -> Iterator[None]:
    """Rank variables of a world of one, taken back afterwards."""
    wanted = rank_variables(0, 1, local_rank=0, local_world_size=1, address="127.0.0.1", port=0)
    wanted["MASKGIT_LAUNCH_ID"] = uuid.uuid4().hex[:12]
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Copied(io.TextIOBase):
    """A text stream that writes to a terminal and to a file; everything else is asked of the terminal."""

    def __init__(self, shown: TextIO, kept: TextIO) -> None:
        self._shown, self._kept = shown, kept

    def write(self, text: str) -> int:
        count = self._shown.write(text)
        with contextlib.suppress(OSError):  # a log on a failing disk takes nothing from the terminal
            self._kept.write(text)
        return count

    def flush(self) -> None:
        self._shown.flush()
        with contextlib.suppress(OSError, ValueError):  # closed: Python 3.13 tells of it when it drops this stream
            self._kept.flush()

    def isatty(self) -> bool:
        return self._shown.isatty()

    def fileno(self) -> int:
        return self._shown.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._shown.encoding


@contextlib.contextmanager
def _copied_output(call: Call) -> Iterator[None]:
    call.log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(call.log, "a", buffering=1, encoding="utf-8", errors="replace") as kept,
        contextlib.redirect_stdout(_Copied(sys.stdout, kept)),
        contextlib.redirect_stderr(_Copied(sys.stderr, kept)),
    ):
        yield
