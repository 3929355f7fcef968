"""The processes of one call on this machine: started together, ended together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO

from launchers.calls import CONTINUE, STOPPED, Call, Outcome, describe_exit, rank_log, rank_variables
from launchers.entry import LIFELINE
from launchers.machine import free_port
from maskgit_core.errors import LaunchError

# How long the other ranks may take to end once one of them is gone: after a crash, after a leave with saved state.
_CRASH_GRACE_S = 10.0
_LEAVE_GRACE_S = 300.0


class CallProcesses:
    """All ranks of a call, each a process group of its own that dies with this process.

    Args:
        call: what to run.
        gpus: devices for the call as a whole; every rank sees all of them and takes the one of its LOCAL_RANK.
    """

    def __init__(self, call: Call, gpus: list[str]) -> None:
        self.call, self.gpus = call, gpus
        self._began = time.monotonic()
        self._first_bad: tuple[int, int] | None = None  # rank, exit code
        self._kill_at: float | None = None
        self._seconds: float | None = None
        # The children hold the read end; when this process goes, for whatever reason, the write end goes with it.
        self._pipe_read, self._pipe_write = os.pipe()
        self._processes: list[subprocess.Popen[bytes]] = []
        port, launch_id = free_port(), uuid.uuid4().hex[:12]
        try:
            for rank in range(call.resources.ranks):
                self._processes.append(self._spawn(rank, port, launch_id))
        except OSError as error:
            self.kill()
            raise LaunchError(f"{call.log}: cannot start {call.name} ({error.strerror})") from error
        finally:
            os.close(self._pipe_read)

    def _spawn(self, rank: int, port: int, launch_id: str) -> subprocess.Popen[bytes]:
        call, wanted = self.call, self.call.resources
        log = rank_log(call.log, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        environment |= rank_variables(
            rank, wanted.ranks, local_rank=rank, local_world_size=wanted.ranks, address="127.0.0.1", port=port
        )
        environment["OMP_NUM_THREADS"] = str(wanted.cpus_per_task)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        environment["MASKGIT_LAUNCH_ID"] = launch_id
        environment[LIFELINE] = str(self._pipe_read)
        # The child must find the very code that runs here, however it was found.
        here = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-u", "-m", "launchers.entry", call.target, json.dumps(list(call.args))]
        output: IO[bytes]
        with open(log, "ab") as output:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches this process alone, which passes it on
                pass_fds=(self._pipe_read,),
            )

    def poll(self) -> int | None:
        """None while any rank runs, else the call's exit code; when a rank breaks, the others are ended."""
        if self._seconds is not None:
            return self._exit_code()
        codes = [process.poll() for process in self._processes]
        for rank, code in enumerate(codes):
            if code and self._first_bad is None:
                self._first_bad = (rank, code)
                leaves = code == CONTINUE or code in STOPPED
                self._kill_at = time.monotonic() + (_LEAVE_GRACE_S if leaves else _CRASH_GRACE_S)
                if not leaves:  # the rest would wait for it for ever
                    self.ask_to_end()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._kill_groups()
        if any(code is None for code in codes):
            return None
        self._close()
        return self._exit_code()

    def _exit_code(self) -> int:
        return self._first_bad[1] if self._first_bad else 0

    def outcome(self) -> Outcome:
        """How the call ended; only after `poll` gave a code."""
        seconds = self._seconds or 0.0
        if self._first_bad is None:
            return Outcome("done", seconds=seconds)
        rank, code = self._first_bad
        if code in STOPPED or code == CONTINUE:
            return Outcome("stopped", code, "saved; run the same command to go on", seconds)
        who = f"rank {rank}: " if len(self._processes) > 1 else ""
        return Outcome("failed", code, who + describe_exit(code), seconds)

    def ask_to_end(self) -> None:
        """TERM to every rank, not to the workers it started: those must live until their rank has saved."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all that is left of this call at once and waits until it is gone."""
        self._kill_groups()
        for rank, process in enumerate(self._processes):
            code = process.wait()
            if code and self._first_bad is None:
                self._first_bad = (rank, code)
        self._close()

    def _kill_groups(self) -> None:
        for process in self._processes:
            if process.returncode is None:  # not reaped: its number cannot belong to anybody else yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _close(self) -> None:
        if self._seconds is None:
            self._seconds = time.monotonic() - self._began
            os.close(self._pipe_write)  # the watchers (see `entry.die_with`) kill what a rank left behind
