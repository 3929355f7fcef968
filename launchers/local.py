"""Runs calls as processes of this machine: side by side as far as cores and GPUs allow, several ranks where asked."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from launchers.calls import (
    CONTINUE,
    Call,
    Event,
    LaunchContext,
    LauncherProtocol,
    OnEvent,
    Outcome,
    first_obstacle,
    topological,
)
from launchers.machine import count_cores, find_gpus
from launchers.processes import CallProcesses
from launchers.ssh import refuse_here
from launchers.stop_requests import StopRequests
from maskgit_core.errors import LaunchError

_POLL_S = 0.05


class Launcher(LauncherProtocol):
    """The workstation launcher.

    Args:
        cores: CPU cores to share out; None: all this process may use. A call that asks for more runs alone.
        gpus: GPUs to share out; None: all that are visible. Where there are none at all, calls run on the CPU.
        grace_s: seconds between asking a process to save and end and killing it.
        max_restarts: how often a call that saved its state and asked to be continued is started again.
        ssh: "user@host", or a mapping (`launchers.ssh.Site`): the command is carried out there instead of here.
    """

    is_detached = False
    echoes = False

    def __init__(
        self,
        *,
        cores: int | None = None,
        gpus: int | None = None,
        grace_s: float = 60.0,
        max_restarts: int = 20,
        ssh: str | dict[str, Any] | None = None,
    ) -> None:
        refuse_here(ssh)
        self.cores = cores if cores is not None else count_cores()
        visible = find_gpus()
        if gpus is not None and gpus > len(visible):
            raise LaunchError(f"launcher.gpus: found {gpus}, but this machine shows {len(visible)}; use null for all")
        self.gpus = visible[:gpus]
        self.grace_s = grace_s
        self.max_restarts = max_restarts

    def check(self, calls: Sequence[Call]) -> list[str]:
        """Raises `LaunchError` where a call asks for more GPUs than there are."""
        for call in calls:
            if self.gpus and call.resources.gpus > len(self.gpus):
                raise LaunchError(
                    f"resources.{call.name}: {call.resources.gpus} GPUs asked for, this machine has {len(self.gpus)}; "
                    "lower ranks or gpus_per_task"
                )
        return []

    def launch(
        self, calls: Sequence[Call], *, on_event: OnEvent | None = None, context: LaunchContext | None = None
    ) -> dict[str, Outcome]:
        """Executes all calls whose needs ended well; returns how each ended. A failure stops only what needs it.

        Ctrl-C and TERM ask every process to save and end, and kill what is left after `grace_s` (at once on a second
        Ctrl-C); the outcomes then say "stopped".

        Raises:
            LaunchError: a call asks for more GPUs than there are; nothing was started.
        """
        ordered = topological(calls)
        self.check(ordered)
        with _stop_requests() as requests:
            return _Session(self, ordered, on_event or (lambda event: None)).run(requests)


class _Session:
    """The calls of one launch: waiting, running, ended."""

    def __init__(self, launcher: Launcher, ordered: list[Call], tell: OnEvent) -> None:
        self.launcher, self.tell = launcher, tell
        self.waiting = list(ordered)
        self.running: list[CallProcesses] = []
        self.outcomes: dict[str, Outcome] = {}
        self.restarts: dict[str, int] = {}
        self.free_cores = launcher.cores
        self.free_gpus = list(launcher.gpus)

    def run(self, requests: list[int]) -> dict[str, Outcome]:
        try:
            while (self.waiting or self.running) and not requests:
                self._start_what_fits()
                if not self._collect():
                    time.sleep(_POLL_S)
            if requests:
                self._stop(requests)
        finally:  # whatever went wrong above, nothing of ours stays behind
            for process in self.running:
                process.kill()
        return self.outcomes

    def _start_what_fits(self) -> None:
        for call in list(self.waiting):
            obstacle = first_obstacle(call, self.outcomes)
            if obstacle is not None:
                self.waiting.remove(call)
                self._end(call, Outcome("blocked", message=f"needs {obstacle}"))
            elif self._is_ready(call) and self._fits(call):
                self.waiting.remove(call)
                self._start(call)

    def _is_ready(self, call: Call) -> bool:
        unfinished = {other.key for other in self.waiting} | {process.call.key for process in self.running}
        return not unfinished.intersection(call.needs)

    def _fits(self, call: Call) -> bool:
        wanted = call.resources
        gpus = wanted.gpus if self.launcher.gpus else 0
        return gpus <= len(self.free_gpus) and (wanted.cores <= self.free_cores or not self.running)

    def _start(self, call: Call) -> None:
        count = call.resources.gpus if self.launcher.gpus else 0
        gpus, self.free_gpus = self.free_gpus[:count], self.free_gpus[count:]
        self.free_cores -= call.resources.cores
        if call.key not in self.restarts:
            self.restarts[call.key] = 0
            self.tell(Event("started", call))
        self.running.append(CallProcesses(call, gpus))

    def _collect(self) -> bool:
        """Takes in the calls that have ended; True if there were any."""
        ended = [process for process in self.running if process.poll() is not None]
        for process in ended:
            self.running.remove(process)
            self.free_cores += process.call.resources.cores
            self.free_gpus = sorted({*self.free_gpus, *process.gpus})
            self._judge(process)
        return bool(ended)

    def _judge(self, process: CallProcesses, stopping: bool = False) -> None:
        call, outcome = process.call, process.outcome()
        if outcome.exit_code == CONTINUE and not stopping:
            if self.restarts[call.key] < self.launcher.max_restarts:
                self.restarts[call.key] += 1
                self.waiting.insert(0, call)
                return
            times = self.launcher.max_restarts
            outcome = Outcome(
                "failed", CONTINUE, f"asked to be continued {times} times without an end", outcome.seconds
            )
        if stopping and outcome.state == "failed":
            outcome = Outcome("stopped", outcome.exit_code, outcome.message, outcome.seconds)
        self._end(call, outcome)

    def _end(self, call: Call, outcome: Outcome) -> None:
        self.outcomes[call.key] = outcome
        kind = {"done": "finished"}.get(outcome.state, outcome.state)
        self.tell(Event(kind, call, outcome.message, outcome.seconds, outcome))

    def _stop(self, requests: list[int]) -> None:
        for process in self.running:
            process.ask_to_end()
        deadline = time.monotonic() + self.launcher.grace_s
        while any(process.poll() is None for process in self.running):
            if len(requests) > 1 or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        for process in self.running:
            process.kill()
            self._judge(process, stopping=True)
        self.running.clear()
        for call in self.waiting:
            self.outcomes[call.key] = Outcome("stopped", message="not started")
        self.waiting.clear()


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that grows by a signal number with every INT or TERM; earlier handlers come back at the end."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may handle signals
        return

    def remember(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        if isinstance(outer := before[number], StopRequests):  # of a call that launches calls itself
            outer.note(number)

    before: dict[int, object] = {}
    before |= {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
