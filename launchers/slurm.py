"""Submits calls to SLURM as jobs and arrays that wait for each other, and returns; no process of ours stays behind.

Everything is submitted held. Ids are written to disk as they come, dependencies are set element by element where one
expression cannot say them, and only then is anything released, what waits for nothing last. Killed before that, the
submission is held jobs only, which `recover` cancels; killed after it, `recover` releases them.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from launchers.calls import Call
from launchers.files import read_json, write_json
from launchers.slurm_batches import Batch, Submitted, Waits, array_dependency, make_batches
from launchers.slurm_queue import call_tool, clean_environment, snapshot
from maskgit_core.errors import LaunchError


class Launcher:
    """A cluster's profile.

    Args:
        partition, account, qos, constraint, reservation: as sbatch takes them; null leaves them to the site.
        exclude: nodes to stay away from, e.g. "node[3-4],node9".
        gpu_type: the type name of the site's GPUs ("h100"); null for any.
        gpu_option: how the site wants GPUs asked for.
        timeout_min, mem_gb: for steps that do not ask for a time limit or memory of their own.
        max_parallel: how many elements of one array may run at once.
        max_array_size: elements in one array; null asks the cluster (MaxArraySize).
        setup: shell lines before the step starts, e.g. "module load cuda".
        python: the interpreter inside the job, e.g. "singularity exec image.sif python"; null: this one.
        srun_args: further options of srun.
        sbatch: further options of sbatch, e.g. {"mail-type": "FAIL"}.
        signal_s: seconds before the time limit at which a step is told to save and is requeued.
        requeue: "scontrol", or "chain" where the site forbids `scontrol requeue`: further jobs that start if the one
            before did not end well.
        max_attempts: jobs in such a chain.
        max_idle_restarts: how often a step may be restarted without getting any further.
    """

    def __init__(
        self,
        *,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        reservation: str | None = None,
        exclude: str | None = None,
        gpu_type: str | None = None,
        gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node",
        timeout_min: float | None = None,
        mem_gb: float | None = None,
        max_parallel: int = 256,
        max_array_size: int | None = None,
        setup: list[str] = [],  # noqa: B006  (read only; the signature is the schema)
        python: str | None = None,
        srun_args: list[str] = [],  # noqa: B006
        sbatch: dict[str, str] = {},  # noqa: B006
        signal_s: int = 120,
        requeue: Literal["scontrol", "chain"] = "scontrol",
        max_attempts: int = 4,
        max_idle_restarts: int = 3,
    ) -> None:
        self.partition, self.account, self.qos, self.constraint = partition, account, qos, constraint
        self.reservation, self.exclude = reservation, exclude
        self.gpu_type, self.gpu_option = gpu_type, gpu_option
        self.timeout_min, self.mem_gb = timeout_min, mem_gb
        self.max_parallel, self.max_array_size = max_parallel, max_array_size
        self.setup, self.python = list(setup), python
        self.srun_args, self.sbatch = list(srun_args), dict(sbatch)
        self.signal_s, self.requeue = signal_s, requeue
        self.max_attempts, self.max_idle_restarts = max_attempts, max_idle_restarts

    def submit(
        self,
        calls: Sequence[Call],
        *,
        folder: Path,
        code: Path,
        queued: Mapping[str, Sequence[str]] | None = None,
        packed: Collection[str] = (),
        on_ids: Callable[[Submitted], None] = lambda submitted: None,
    ) -> Submitted:
        """Submits everything; returns the job ids of each call.

        Args:
            folder: new and on a disk that the nodes share; keeps scripts, ids and notes of this submission.
            code: folder the jobs import from and start in.
            queued: job ids (links) of calls that others have submitted and that `needs` may name.
            packed: those of them that share their job with other calls.
            on_ids: called with all ids before anything may start; an error it raises undoes the submission.

        Raises:
            LaunchError: SLURM refuses or does not answer; nothing stays in the queue.
        """
        limit = self.max_array_size or max_array_size()
        batches = make_batches(calls, limit)
        submission = Submission(folder)
        submission.begin([self._name(batch, folder) for batch in batches])
        submitted = Submitted({key: tuple(jobs) for key, jobs in (queued or {}).items()}, set(packed))
        sizes: dict[str, int] = {}
        updates: list[str] = []
        roots: list[str] = []
        others: list[str] = []
        try:
            for batch in batches:
                waits = [submitted.waits(task) for task in batch.tasks]
                ids = self._submit_batch(batch, waits, sizes, folder, code, updates)
                sizes |= dict.fromkeys(ids, len(batch.tasks))
                (others if any(wait.expression() for wait in waits) else roots).append(ids[0])
                others.extend(ids[1:])
                submitted.add(batch, ids)
            _scontrol(updates)
            on_ids(submitted)
            submission.complete(others + roots)
        except BaseException:
            submission.roll_back()
            raise
        submission.release()
        return submitted

    def check(self, calls: Sequence[Call]) -> list[str]:
        """Raises `LaunchError` where the cluster can never run one of the calls; returns what was found in order."""
        from launchers.slurm_checks import check

        return check(self, calls)

    def _name(self, batch: Batch, folder: Path) -> str:
        """Unique in the queue, so that a job whose id was lost can be found."""
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', batch.group)}.{folder.name[-8:]}.{batch.number}"

    def _submit_batch(
        self,
        batch: Batch,
        waits: Sequence[Waits],
        sizes: Mapping[str, int],
        folder: Path,
        code: Path,
        updates: list[str],
    ) -> list[str]:
        """Writes what the tasks read, calls sbatch for each link and notes each id; returns the ids."""
        from launchers.slurm_script import script

        place = folder / f"{batch.number:03d}"
        write_json(place / "batch.json", self._description(batch))
        dependency = array_dependency(batch, waits, sizes)
        ids: list[str] = []
        for link in range(self.max_attempts if self.requeue == "chain" else 1):
            expression = dependency
            if link:
                expression = None if batch.is_array else ",".join(f"afternotok:{job}" for job in ids)
            path = place / f"job-{link}.sh"
            name = self._name(batch, folder)
            path.write_text(script(self, batch, place, name, code, dependency=expression or "", link=link))
            ids.append(sbatch(path))
            write_json(place / "jobs.json", ids)
            if expression is None:
                updates += self._updates(batch, waits, ids)
        return ids

    def _updates(self, batch: Batch, waits: Sequence[Waits], ids: Sequence[str]) -> list[str]:
        """scontrol commands that give each element of the newest link its own dependency."""
        lines = []
        for index, wait in enumerate(waits):
            earlier = [batch.job(job, index) for job in ids[:-1]]
            expression = ",".join(f"afternotok:{job}" for job in earlier) if earlier else wait.expression()
            if expression:
                lines.append(f"update JobId={batch.job(ids[-1], index)} Dependency={expression}")
        return lines

    def _description(self, batch: Batch) -> dict[str, object]:
        wanted = batch.resources
        return {
            "group": batch.group,
            "ranks": wanted.ranks,
            "nodes": wanted.nodes,
            "cpus_per_task": wanted.cpus_per_task,
            "requeue": self.requeue,
            "max_idle_restarts": self.max_idle_restarts,
            "tasks": [
                [
                    {
                        "key": call.key,
                        "name": call.name,
                        "target": call.target,
                        "args": list(call.args),
                        "log": str(call.log),
                        "progress": call.progress,
                    }
                    for call in task
                ]
                for task in batch.tasks
            ],
        }


class Submission:
    """What one submission has put into the queue, on disk: the base for undoing or finishing it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "submission.json"

    @property
    def state(self) -> str:
        """ "submitting", "submitted" (all ids known, not yet released), "released", "undone", or "" for none."""
        return str((read_json(self._path) or {}).get("state", ""))

    def begin(self, names: Sequence[str]) -> None:
        """Notes the names under which jobs will be in the queue, before the first is."""
        self._write({"state": "submitting", "names": list(names), "host": socket.gethostname(), "pid": os.getpid()})

    def complete(self, order: Sequence[str]) -> None:
        """Notes that every id is on disk, and in which order they are to be released."""
        self._write({**(read_json(self._path) or {}), "state": "submitted", "order": list(order)})

    def release(self) -> None:
        """Lets everything start that waits for nothing."""
        known = read_json(self._path) or {}
        order = known.get("order", [])
        for start in range(0, len(order), 100):
            done = call_tool(["scontrol", "release", ",".join(order[start : start + 100])])
            if done.returncode != 0 and "already finished" not in done.stderr and "Invalid job id" not in done.stderr:
                raise LaunchError(f"scontrol release: {_last_line(done.stderr)}; run the same command again to release")
        self._write({**known, "state": "released"})

    def roll_back(self) -> None:
        """Takes everything of this submission out of the queue, also jobs whose id was never heard."""
        known = read_json(self._path) or {}
        found = snapshot(names=known.get("names", []))
        ids = {job.partition("_")[0] for job in found or {}} | set(self.jobs())
        if found is None and not ids:
            return  # nobody answers; `recover` will try again
        if ids:
            call_tool(["scancel", *sorted(ids)])
        if found is not None:
            self._write({**known, "state": "undone"})

    def jobs(self) -> list[str]:
        """The ids heard so far."""
        return [job for path in sorted(self.folder.glob("*/jobs.json")) for job in read_json(path) or []]

    def recover(self) -> str:
        """Finishes or undoes a submission whose process is gone; returns its state afterwards."""
        if self.state == "submitting":
            self.roll_back()
        elif self.state == "submitted":
            self.release()
        return self.state

    def _write(self, value: Mapping[str, object]) -> None:
        write_json(self._path, {**value, "time": time.time()})


def sbatch(path: Path) -> str:
    """Submits a script; returns the job id.

    Raises:
        LaunchError: sbatch refused; carries its last line.
    """
    done = call_tool(["sbatch", "--parsable", str(path)])
    job = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not job.isdigit():
        raise LaunchError(f"sbatch: {_last_line(done.stderr) or 'gave no job id'} (script: {path}); nothing was queued")
    return job


def _scontrol(lines: Sequence[str]) -> None:
    """Feeds commands to one scontrol process: a call each would take ten milliseconds for every element."""
    if not lines:
        return
    done = subprocess.run(
        ["scontrol"], input="\n".join(lines) + "\n", capture_output=True, text=True, env=clean_environment()
    )
    trouble = [line for line in done.stderr.splitlines() if line.strip()]
    if trouble:
        raise LaunchError(f"scontrol update: {trouble[0]}; nothing was queued")


def max_array_size() -> int:
    """The cluster's limit on elements of an array (an index must be below it); 1000 where nobody answers."""
    done = call_tool(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    if done.returncode != 0:
        raise LaunchError(f"scontrol: {_last_line(done.stderr)}; is this a login node of the cluster?")
    return max(1, int(found[1])) if found else 1000


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(sbatch|scontrol|srun): error: ", "", lines[-1]) if lines else ""
