"""Events of a launch's steps, told as they happen: on a terminal with one live line per running step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from experiments.console import coloured, duration
from experiments.launching.live_lines import LiveLines
from launchers.calls import DISK_FULL, Call, Event, Outcome
from maskgit_core.errors import ArtifactError

Voice = Literal["quiet", "normal", "verbose"]
LAST_LINES = 8


class Teller:
    """Prints what happens to steps; why one failed at once, with its last lines and its log.

    Args:
        names: step names by fingerprint.
        echoed: the launcher shows what steps print.
        voice: "quiet" tells of failures alone, "verbose" shows what steps print, each line after its step's name.
    """

    def __init__(self, names: Mapping[str, str], echoed: bool, voice: Voice = "normal") -> None:
        self._names, self._echoed, self._voice = names, echoed, voice
        self._began = time.monotonic()
        self._live = LiveLines()
        self._logs = _Logs() if voice == "verbose" and not echoed else None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws the live lines while the block runs."""
        with ExitStack() as stack:
            if self._voice != "quiet":
                stack.enter_context(self._live.shown())
            if self._logs is not None:
                stack.enter_context(self._logs)
            yield

    def __call__(self, event: Event) -> None:
        """Tells of one event."""
        if event.kind == "started":
            self._live.started(event.call)
            if self._logs is not None:
                self._logs.follow(event.call)
        else:
            self._live.ended(event.call)
        if self._voice != "quiet":
            self._say(event)
        if event.kind == "failed":
            print_failure(event.call, event.outcome or Outcome("failed", 1, event.message), self._echoed)

    def _say(self, event: Event) -> None:
        colour = {"finished": "green", "failed": "red", "blocked": "yellow"}.get(event.kind)
        took = f" in {duration(event.seconds)}" if event.seconds else ""
        said = " ".join(self._names.get(word, word) for word in event.message.split())
        message = f": {said}" if said and event.kind != "finished" else ""
        at = duration(time.monotonic() - self._began)
        print(coloured(f"[{at:>6}] {event.call.name} {event.kind}{took}{message}", colour), flush=True)


def print_failure(call: Call, outcome: Outcome, echoed: bool) -> None:
    """Prints why a step failed: one line where the request cannot be met, else its last lines and its log.

    The line is not repeated where it was `echoed`.
    """
    lines = _lines(call)
    if (told := refusal(call, outcome, lines)) is not None:
        if not (echoed and (told in lines or not lines)):  # without a log to look at, it was shown as it came
            print(f"{told} (step {call.name})", file=sys.stderr, flush=True)
        return
    print(coloured(f"step {call.name} failed: {outcome.message}", "red"), file=sys.stderr)
    for line in lines[-LAST_LINES:]:
        print(f"    {line}", file=sys.stderr)
    print(f"    log: {call.log}", file=sys.stderr, flush=True)


def refusal(call: Call, outcome: Outcome, lines: list[str] | None = None) -> str | None:
    """The one line that says why a step's request cannot be met; None for any other failure."""
    from experiments.store.step_folder import last_end

    printed = _lines(call) if lines is None else lines
    told = [line for line in printed if line.startswith("error: ")]
    if "No space left" in outcome.message or (outcome.exit_code in (2, DISK_FULL) and not told):
        # The log itself could not be written.
        end = None
        with suppress(ArtifactError):  # of the disk that fails
            end = last_end(Path(call.args[0]))
        reason = (end and end.reason) or f"{call.log.parent}: the disk is full; free some space"
        told = [f"error: {reason}"]
    met = told and (outcome.exit_code in (2, DISK_FULL) or "No space left" in outcome.message)
    return told[-1] if met else None


def _lines(call: Call) -> list[str]:
    with suppress(OSError):  # a disk that fails must not hide what else is known
        return call.log.read_text(errors="replace").splitlines()
    return []


class _Logs:
    """Prints what is new in the logs of running steps, each line after its step's name, from a thread."""

    EVERY_S = 0.5

    def __init__(self) -> None:
        self._read: dict[str, tuple[Call, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def follow(self, call: Call) -> None:
        """Shows a step's log from its present end on."""
        self._read = {**self._read, call.key: (call, call.log.stat().st_size if call.log.exists() else 0)}

    def __enter__(self) -> _Logs:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(timeout=5.0)
        self._show()

    def _run(self) -> None:
        while not self._end.wait(self.EVERY_S):
            self._show()

    def _show(self) -> None:
        for key, (call, position) in list(self._read.items()):
            if not call.log.exists():
                continue
            with open(call.log, "rb") as file:
                file.seek(position)
                new = file.read()
            whole, end, _ = new.rpartition(b"\n")  # an unfinished line is shown once it is whole
            self._read[key] = (call, position + len(whole) + len(end))
            for line in whole.decode(errors="replace").splitlines():
                print(coloured(f"{call.name} | ", "dim") + line, flush=True)
