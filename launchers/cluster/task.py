"""Runs inside a SLURM job, once per rank (srun): executes the calls of one task and tells SLURM how they ended.

`python -u -m launchers.cluster.task <batch folder>`. The folder was fixed before sbatch was called, so that nothing
here depends on the submitting process still being there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launchers.calls import CONTINUE, DISK_FULL, STOPPED, describe_exit, rank_log, rank_variables, resolve
from launchers.cluster.queue import call_tool
from launchers.entry import LIFELINE
from maskgit_core.errors import DiskFullError, LaunchError
from maskgit_core.files import read_json, write_json

#: What the job script takes an exit code for; a process that SIGKILL ended is taken to have lacked memory.
_WHY = {0: "", CONTINUE: "", **dict.fromkeys(STOPPED, ""), DISK_FULL: "disk_full", 2: "refused"}
_OTHERS_WAIT_S = 600.0  # how long a rank that has saved waits for the others, or to be ended with the job
_RELAY_AFTER_S = 5.0


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
        try:
            return self._run()
        except DiskFullError as error:
            told: Exception = error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            told = error
        with contextlib.suppress(OSError):
            print(f"error: {told}", flush=True)
        return DISK_FULL

    def _run(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        self._mark(f"began/{self.index}-{self.link}-{self.restart}")
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
            if self._failed_before(position):
                codes.append(1)
                continue
            self._end_path(position).unlink(missing_ok=True)  # how an earlier life ended says nothing about this one
            code = self._execute(call, position)
            self._note(position, call, code, began)
            codes.append(code)
        if CONTINUE in codes:
            return self._leave(CONTINUE)
        if any(code in STOPPED for code in codes):
            return self._leave(STOPPED[1])
        self._write_result(codes)
        if self.rank == 0 and not any(codes):
            self._mark(f"done/{self.index}-{self.link}-{self.restart}")
        return max((min(abs(code), 125) for code in codes), default=0)

    # -- the call ---------------------------------------------------------------------------------------------------
    def _execute(self, call: Mapping[str, Any], position: int) -> int:
        log = rank_log(Path(call["log"]), self.rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, ours = os.pipe()
        command = [sys.executable, "-u", "-m", "launchers.entry", call["target"], json.dumps(call["args"])]
        try:
            with open(log, "ab") as output:
                memory = os.environ.get("SLURM_MEM_PER_NODE")
                more = f", {memory} MB" if memory and memory != "0" else ""
                head = f"--- job {self.job}, restart {self.restart}, rank {self.rank} on {self.node}{more}\n"
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
        if code < 0 and call.get("cleanup"):
            resolve(call["cleanup"])(*call["args"][:1], self._child.pid)
        # Killed by the request to save before it could listen to it: nothing was begun, nothing is lost.
        return {-signal.SIGUSR2: CONTINUE, -signal.SIGTERM: STOPPED[1]}.get(code, code)

    def _variables(self, position: int) -> dict[str, str]:
        nodes = int(self.batch["nodes"])
        address, port = "127.0.0.1", rendezvous_port(self.job_number, position)
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
    def _leave(self, code: int) -> int:
        """Ends this rank with `code` after the others have saved too: srun ends them all as soon as one has failed.

        The job script (`launchers.cluster.job_end`) then asks SLURM to run the job again, or does not.
        """
        life, terms = f"{self.index}-{self.link}-{self.restart}", self._terms
        if self.rank == 0:
            self._wait(lambda: self._count(f"saved/{life}.*") >= self.ranks - 1 or self._terms > terms, _OTHERS_WAIT_S)
            if code == CONTINUE:
                self._mark(f"continue/{life}")
            return code
        self._mark(f"saved/{life}.{self.rank}")
        if code == CONTINUE:
            self._wait(lambda: self._terms > 0, _RELAY_AFTER_S)
            # Rank 0 may not have been asked to save: once in a life of the job, SLURM is told to send USR2 to all.
            if not self._terms and self._mark(f"asked/{life}"):
                with contextlib.suppress(LaunchError):
                    call_tool(["scancel", "--signal=USR2", self.job])
        self._wait(lambda: self._terms > terms, _OTHERS_WAIT_S)
        return code

    def _mark(self, name: str) -> bool:
        """Makes an empty file in the batch folder; False where it was there or cannot be made."""
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.touch(exist_ok=False)
        except OSError:
            return False
        return True

    def _count(self, pattern: str) -> int:
        return sum(1 for _ in self.folder.glob(pattern))

    def _wait(self, is_over: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
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
        idle = known.get("idle", 0)
        if not lives or known.get("value") != value:
            idle = 0
        elif self._retries() not in ("oom", "disk_full", "own_error", "before"):  # those have limits of their own
            idle += 1
        write_json(path, {"value": value, "idle": idle})
        limit = int(self.batch["max_idle_restarts"])
        if idle <= limit:
            return False
        message = f"restarted {idle} times without any progress; look for the reason in {call['log']}"
        print(f"{call['name']}: {message}", flush=True)
        self._note(position, call, 1, time.time(), message)
        return True

    def _failed_before(self, position: int) -> bool:
        """True for one of several packed calls that an earlier life saw fail by itself: only the others come again."""
        if len(self.calls) == 1 or not (self.restart or self.link) or self._retries() == "own_error":
            return False
        code = (read_json(self._end_path(position)) or {}).get("code", 0)
        return 0 < code < 128 and code not in (CONTINUE, DISK_FULL)

    def _retries(self) -> str:
        """Why the job script ran this job again the last time (`launchers.cluster.job_end`); empty where it did not."""
        try:
            lines = (self.folder / "retries" / f"{self.index}.jsonl").read_text().splitlines()
            return str(json.loads(lines[-1])["reason"])
        except (OSError, ValueError, IndexError, KeyError):
            return ""

    def _earlier_link_failed(self) -> bool:
        """In a chain of jobs, a link that ended for good is followed by none that works."""
        return self.link > 0 and self._count(f"final/{self.index}-{self.link - 1}") > 0

    def _end_path(self, position: int) -> Path:
        rank = f".rank{self.rank}" if self.rank else ""
        return self.folder / "ends" / f"{self.index}-{position}{rank}.json"

    def _write_result(self, codes: Sequence[int]) -> None:
        """Leaves the file by which `submitit.SlurmJob(batch folder, job id).result()` answers; we never read it."""
        ends = {call["name"]: describe_exit(code) for call, code in zip(self.calls, codes, strict=False) if code}
        value = ("error", f"not well: {ends}") if ends else ("success", [call["name"] for call in self.calls])
        with contextlib.suppress(OSError):
            (self.folder / f"{self.job}_{self.rank}_result.pkl").write_bytes(pickle.dumps(value))

    def _note(self, position: int, call: Mapping[str, Any], code: int, began: float, message: str = "") -> None:
        """Leaves a note on how the call ended; a rank above 0 only where it did not end well."""
        if (why := _WHY.get(code, "oom" if code == -signal.SIGKILL else "own_error")) and not message:
            self._mark(f"why/{self.index}-{self.link}-{self.restart}.{why}")
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


def rendezvous_port(job: int, position: int) -> int:
    """A TCP port that ranks on all nodes agree on, below the ports that Linux gives to outgoing connections."""
    return 10000 + (job * 31 + position) % 20000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank of the task that SLURM's variables name."""
    (folder,) = argv if argv is not None else sys.argv[1:]
    return Task(Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
