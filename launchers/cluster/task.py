"""Runs inside a SLURM job, once per rank (srun): executes the calls of one task and tells SLURM how they ended.

`python -u -m launchers.cluster.task <batch folder>`. The folder was fixed before sbatch was called, so that nothing
here depends on the submitting process still being there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launchers.calls import CONTINUE, STOPPED, describe_exit, rank_log, rank_variables, resolve
from launchers.cluster.queue import call_tool, clock_seconds
from launchers.entry import LIFELINE
from maskgit_core.errors import LaunchError
from maskgit_core.files import read_json, write_json

_WAIT_FOR_END_S = 3600.0  # how long a rank that has saved waits for SLURM to end it
_OTHERS_WAIT_S = 600.0
_RELAY_AFTER_S = 5.0
_REQUEUE_TRIES = 20


class Task:
    """One rank of one task of a batch.

    Args:
        folder: the batch folder with `batch.json`.
        environment: SLURM's variables.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        self.folder = folder
        self.batch: dict[str, Any] = json.loads((folder / "batch.json").read_text())
        array = env.get("SLURM_ARRAY_JOB_ID")
        self.index = int(env.get("SLURM_ARRAY_TASK_ID", 0)) if array else 0
        self.job = f"{array}_{self.index}" if array else env["SLURM_JOB_ID"]
        self.job_number = int(env["SLURM_JOB_ID"])
        self.link = int(env.get("MASKGIT_CHAIN_LINK", 0))
        self.restart = int(env.get("SLURM_RESTART_COUNT", 0))
        self.rank = int(env.get("SLURM_PROCID", 0))
        self.local_rank = int(env.get("SLURM_LOCALID", 0))
        self.node = env.get("SLURMD_NODENAME", "")
        self.ranks = int(self.batch["ranks"])
        self.calls: list[dict[str, Any]] = self.batch["tasks"][self.index]
        self.asked: int | None = None
        self._terms = 0
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Tries every call of the task; returns the exit code of this rank (0: all done)."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        if self._earlier_link_failed():
            return 1
        codes = []
        for position, call in enumerate(self.calls):
            if self.asked is not None:
                codes.append(CONTINUE if self.asked == signal.SIGUSR2 else STOPPED[1])
                break
            if self._stands_still(position, call):
                codes.append(1)
                continue
            began = time.time()
            code = self._execute(call, position)
            self._note(position, call, code, began)
            codes.append(code)
        if CONTINUE in codes:
            return self._continue()
        if any(code in STOPPED for code in codes):
            return self._stopped()
        return max((min(abs(code), 125) for code in codes), default=0)

    # -- the call ---------------------------------------------------------------------------------------------------
    def _execute(self, call: Mapping[str, Any], position: int) -> int:
        log = rank_log(Path(call["log"]), self.rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, ours = os.pipe()
        command = [sys.executable, "-u", "-m", "launchers.entry", call["target"], json.dumps(call["args"])]
        try:
            with open(log, "ab") as output:
                head = f"--- job {self.job}, restart {self.restart}, rank {self.rank} on {self.node}\n"
                output.write(head.encode())
                output.flush()
                self._child = subprocess.Popen(
                    command,
                    env=self._variables(position) | {LIFELINE: str(lifeline)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lifeline,),
                )
            os.close(lifeline)
            if self.asked is not None:  # the signal came while the child was being made
                self._child.send_signal(self.asked)
            code = self._child.wait()
        finally:
            os.close(ours)
        # Killed by the request to save before it could listen to it: nothing was begun, nothing is lost.
        return {-signal.SIGUSR2: CONTINUE, -signal.SIGTERM: STOPPED[1]}.get(code, code)

    def _variables(self, position: int) -> dict[str, str]:
        nodes = int(self.batch["nodes"])
        address, port = "127.0.0.1", 20000 + (self.job_number * 31 + position) % 30000
        if nodes > 1:
            from submitit.slurm.slurm import SlurmJobEnvironment

            address = SlurmJobEnvironment().hostnames[0]
        variables = dict(os.environ) | rank_variables(
            self.rank,
            self.ranks,
            local_rank=self.local_rank,
            local_world_size=self.ranks // nodes,
            address=address,
            port=port,
        )
        cores = int(self.batch["cpus_per_task"])
        variables["OMP_NUM_THREADS"] = str(cores)
        variables["MASKGIT_LAUNCH_ID"] = f"job-{self.job}-{self.link}-{self.restart}-{position}"
        usable = len(os.sched_getaffinity(0))
        if usable < cores:
            print(f"warning: {cores} cores were asked for, this process may use {usable}; see srun_args", flush=True)
        return variables

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._terms += number == signal.SIGTERM
        if self.asked != signal.SIGUSR2:  # TERM after USR2 is SLURM's usual order; the first request counts
            self.asked = number
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    # -- the end ----------------------------------------------------------------------------------------------------
    def _continue(self) -> int:
        """All is saved and wants to go on: rank 0 has SLURM requeue the job, the others wait to be ended with it."""
        if self.batch["requeue"] == "chain":
            return CONTINUE  # the next link of the chain starts because this one did not end well
        if self.rank == 0:
            for _ in range(_REQUEUE_TRIES):
                if not may_requeue(self._shown_job()):
                    print("cancelled: not requeued", flush=True)
                    return STOPPED[1]
                done = call_tool(["scontrol", "requeue", self.job])
                if done.returncode == 0:
                    break
                print(f"scontrol requeue {self.job}: {done.stderr.strip()}", flush=True)
                time.sleep(3.0)
            else:
                return CONTINUE
        else:
            self._pass_to_other_ranks()
        self._wait(lambda: self._terms > 0)
        return CONTINUE

    def _pass_to_other_ranks(self) -> None:
        """Has SLURM send USR2 to every rank, once a life of the job: rank 0 may not have been asked to save."""
        self._wait(lambda: self._terms > 0, _RELAY_AFTER_S)
        mark = self.folder / "asked" / f"{self.index}-{self.link}-{self.restart}"
        if self._terms:
            return
        with contextlib.suppress(OSError, LaunchError):
            mark.parent.mkdir(exist_ok=True)
            mark.touch(exist_ok=False)
            call_tool(["scancel", "--signal=USR2", self.job])

    def _stopped(self) -> int:
        """Asked to end: by scancel, or because SLURM takes the job back. Only SLURM requeues then.

        A job that ends by itself inside the grace time of a preemption counts as failed and is not requeued.
        """
        if self.rank != 0 or "PreemptTime=2" in self._shown_job():
            self._wait(lambda: False)
        return STOPPED[1]

    def _shown_job(self) -> str:
        try:
            return call_tool(["scontrol", "show", "job", self.job], timeout_s=30.0).stdout
        except LaunchError:
            return ""

    def _wait(self, is_over: Callable[[], bool], limit_s: float | None = None) -> None:
        deadline = time.monotonic() + (limit_s or (_WAIT_FOR_END_S if self.rank == 0 else _OTHERS_WAIT_S))
        while time.monotonic() < deadline and not is_over():
            time.sleep(0.2)

    # -- memory over restarts -----------------------------------------------------------------------------------------
    def _stands_still(self, position: int, call: Mapping[str, Any]) -> bool:
        """True, with a line in the log, where the job was restarted again and again without progress."""
        if self.rank != 0 or not call.get("progress"):
            return False
        path = self.folder / "progress" / f"{self.index}-{position}.json"
        value = resolve(call["progress"])(*call["args"])
        known = read_json(path) or {}
        lives = self.restart + self.link
        idle = known.get("idle", 0) + 1 if lives and known.get("value") == value else 0
        write_json(path, {"value": value, "idle": idle})
        limit = int(self.batch["max_idle_restarts"])
        if idle <= limit:
            return False
        message = f"restarted {idle} times without any progress; look for the reason in {call['log']}"
        print(f"{call['name']}: {message}", flush=True)
        self._note(position, call, 1, time.time(), message)
        return True

    def _earlier_link_failed(self) -> bool:
        """In a chain of jobs, a link that ended with an error of its own is not tried again."""
        if not self.link:
            return False
        ends = [read_json(self._end_path(i)) or {} for i in range(len(self.calls))]
        return any(end.get("code", CONTINUE) not in (0, CONTINUE) for end in ends)

    def _end_path(self, position: int) -> Path:
        rank = f".rank{self.rank}" if self.rank else ""
        return self.folder / "ends" / f"{self.index}-{position}{rank}.json"

    def _note(self, position: int, call: Mapping[str, Any], code: int, began: float, message: str = "") -> None:
        """Leaves a note on how the call ended; a rank above 0 only where it did not end well."""
        if self.rank and (code in (0, CONTINUE) or code in STOPPED):
            return
        note = {
            "key": call["key"],
            "name": call["name"],
            "code": code,
            "message": message or ("done" if code == 0 else describe_exit(code)),
            "job": self.job,
            "restart": self.restart,
            "rank": self.rank,
            "node": self.node,
            "began": began,
            "time": time.time(),
        }
        with contextlib.suppress(OSError):  # a full disk must not change how the job ends
            write_json(self._end_path(position), note)


def may_requeue(shown: str) -> bool:
    """False where somebody ends the job; judged by `scontrol show job`.

    A job that is being ended shows as COMPLETING, whoever ends it; at its time limit it may go on nevertheless.
    """
    fields = dict(part.partition("=")[::2] for part in shown.split())
    if fields.get("JobState", "RUNNING") in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING"):
        return True
    limit = fields.get("TimeLimit", "UNLIMITED")
    if fields.get("JobState") == "TIMEOUT":
        return True
    return limit[:1].isdigit() and clock_seconds(fields.get("RunTime", "0")) >= clock_seconds(limit)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank of the task that SLURM's variables name."""
    (folder,) = argv if argv is not None else sys.argv[1:]
    return Task(Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
