"""Submits calls to SLURM as jobs and arrays that wait for each other, and returns; no process of ours stays behind.

Everything is submitted held. Ids are written to disk as they come, dependencies are set element by element where one
expression cannot say them, and only then is anything released, what waits for nothing last. Killed before that, the
submission is held jobs only, which `recover` cancels; killed after it, `recover` releases them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from launchers.calls import Call, LaunchContext, LauncherProtocol, OnEvent, Outcome
from launchers.cluster.batches import Batch, Submitted, Waits, array_dependency, make_batches, waves
from launchers.cluster.container import Container
from launchers.cluster.nodes import avoidable, failing
from launchers.cluster.submission import Submission, _scontrol, max_array_size, sbatch
from launchers.ssh import refuse_here
from maskgit_core.errors import LaunchError
from maskgit_core.files import write_json


class Launcher(LauncherProtocol):
    """A cluster's profile.

    Args:
        partition, account, qos, constraint, reservation: as sbatch takes them; null leaves them to the site. A step's
            own go into `resources.<step>`, as does its gpu_type.
        cpu_partition: for steps that ask for no GPU, where they go elsewhere.
        exclude: nodes to stay away from, e.g. "node[3-4],node9".
        gpu_type: the type name of the site's GPUs ("h100"); null for any.
        gpu_option: how the site wants GPUs asked for.
        timeout_min, mem_gb: for steps that do not ask for a time limit or memory of their own.
        max_time_min: upper bound of every time limit; a step that needs longer saves its state and is continued.
        max_parallel: how many jobs of one submission may run at once; where it binds, later arrays wait for the end of
            earlier ones.
        max_array_size: elements in one array; null asks the cluster (MaxArraySize).
        setup: shell lines before the step starts, e.g. "module load cuda".
        python: the interpreter inside the job; null: this one (inside a container: "python").
        container: {"runtime": "pyxis" or "apptainer", "image": ..., "mounts": ["/data", "/a:/b"], "args": [...]}; the
            store and the code's folder are mounted in any case. The container needs no SLURM commands.
        cpu_bind: `srun --cpu-bind`; "auto" binds to whole NUMA nodes ("ldoms") where a process has 4 cores or more.
        srun_args: further options of srun.
        sbatch: further options of sbatch, e.g. {"mail-type": "FAIL"}; true for those without a value, null or false to
            take back one of ours.
        signal_s: seconds before the time limit at which a step is told to save and is requeued.
        requeue: "scontrol", or "chain" where the site forbids `scontrol requeue`: further jobs that start if the one
            before did not end well.
        max_attempts: jobs in such a chain.
        max_idle_restarts: how often a step may be restarted without getting any further.
        exclude_after: nodes that lost so many jobs of this store within a day are left out, and named; 0: none.
        ssh: "user@login", or {"host": ..., "python": ..., "store": ...} (`launchers.ssh.Site`): the command is carried
            out there instead of here, with this code.
    """

    is_detached = True
    echoes = False

    def __init__(
        self,
        *,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        cpu_partition: str | None = None,
        reservation: str | None = None,
        exclude: str | None = None,
        gpu_type: str | int | None = None,
        gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node",
        timeout_min: float | None = None,
        mem_gb: float | None = None,
        max_time_min: float | None = None,
        max_parallel: int = 256,
        max_array_size: int | None = None,
        setup: list[str] = [],  # noqa: B006  (read only; the signature is the schema)
        python: str | None = None,
        container: dict[str, Any] | None = None,
        cpu_bind: str = "auto",
        srun_args: list[str] = [],  # noqa: B006
        sbatch: dict[str, str | int | float | bool | None] = {},  # noqa: B006
        signal_s: int = 120,
        requeue: Literal["scontrol", "chain"] = "scontrol",
        max_attempts: int = 4,
        max_idle_restarts: int = 3,
        exclude_after: int = 2,
        ssh: str | dict[str, Any] | None = None,
    ) -> None:
        refuse_here(ssh)
        self.partition, self.account, self.qos, self.constraint = partition, account, qos, constraint
        self.cpu_partition, self.reservation, self.exclude = cpu_partition, reservation, exclude
        self.gpu_type, self.gpu_option = None if gpu_type is None else str(gpu_type), gpu_option
        self.timeout_min, self.mem_gb, self.max_time_min = timeout_min, mem_gb, max_time_min
        self.max_parallel, self.max_array_size = max_parallel, max_array_size
        self.setup, self.python, self.cpu_bind = list(setup), python, cpu_bind
        self.container = Container.read(container) if container else None
        self.srun_args, self.sbatch = list(srun_args), dict(sbatch)
        self.signal_s, self.requeue = signal_s, requeue
        self.max_attempts, self.max_idle_restarts = max_attempts, max_idle_restarts
        self.exclude_after = exclude_after

    def launch(
        self, calls: Sequence[Call], *, on_event: OnEvent | None = None, context: LaunchContext | None = None
    ) -> dict[str, Outcome]:
        """Submits everything; the outcomes hold the job ids of each call.

        Raises:
            LaunchError: SLURM refuses or does not answer; nothing stays in the queue.
        """
        if context is None:
            raise LaunchError("launcher: slurm needs a folder that the nodes share")
        folder = context.folder
        limit = self.max_array_size or max_array_size()
        batches = make_batches(calls, limit)
        together = waves(batches, self.max_parallel)
        earlier = {batch.number: wave for wave, next_wave in pairwise(together) for batch in next_wave}
        avoid = self._failing_nodes(batches, context)
        submission = Submission(folder)
        submission.begin([self._name(batch, folder) for batch in batches])
        submitted = Submitted({key: tuple(jobs) for key, jobs in context.queued.items()}, set(context.packed))
        sizes: dict[str, int] = {}
        updates: list[str] = []
        roots: list[str] = []
        others: list[str] = []
        try:
            for batch in batches:
                before = submitted.array_links(earlier.get(batch.number, ()))
                waits = [submitted.waits(task, before) for task in batch.tasks]
                ids = self._submit_batch(batch, waits, sizes, context, updates, avoid[batch.number])
                sizes |= dict.fromkeys(ids, len(batch.tasks))
                (others if any(wait.expression() for wait in waits) else roots).append(ids[0])
                others.extend(ids[1:])
                submitted.add(batch, ids)
            _scontrol(updates)
            context.on_ids(submitted.links, submitted.shared)
            submission.complete(others + roots)
        except BaseException:
            submission.roll_back()
            raise
        submission.release()
        return {call.key: Outcome("submitted", jobs=submitted.links[call.key]) for call in calls}

    def check(self, calls: Sequence[Call]) -> list[str]:
        """Raises `LaunchError` where the cluster can never run one of the calls; returns what was found in order."""
        from launchers.cluster.checks import check

        return check(self, calls)

    def _failing_nodes(self, batches: Sequence[Batch], context: LaunchContext) -> dict[int, list[str]]:
        """Batch -> nodes of its partition that keep losing jobs; they are named to the user."""
        from launchers.cluster.script import partition, store_of

        lost = failing(store_of(context.folder / "000"), self.exclude_after)
        if self.sbatch.get("nodelist"):
            lost = {}
        places = {batch.number: partition(self, batch.resources) for batch in batches}
        avoided = {place: avoidable(lost, place) for place in set(places.values())}
        for node in dict.fromkeys(node for nodes in avoided.values() for node in nodes):
            context.tell(
                f"{node} lost {lost[node]} jobs within a day and is left out (launcher.exclude_after=0: use it)"
            )
        return {number: avoided[place] for number, place in places.items()}

    def _name(self, batch: Batch, folder: Path) -> str:
        """Unique in the queue, so that a job whose id was lost can be found."""
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', batch.group)}.{folder.name[-8:]}.{batch.number}"

    def _submit_batch(
        self,
        batch: Batch,
        waits: Sequence[Waits],
        sizes: Mapping[str, int],
        context: LaunchContext,
        updates: list[str],
        avoid: Sequence[str],
    ) -> list[str]:
        """Writes what the tasks read, calls sbatch for each link and notes each id; returns the ids."""
        from launchers.cluster.script import script

        folder = context.folder
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
            path.write_text(
                script(self, batch, place, name, context.code, dependency=expression or "", link=link, avoid=avoid)
            )
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
                        "cleanup": call.cleanup,
                        "ended": call.ended,
                    }
                    for call in task
                ]
                for task in batch.tasks
            ],
        }
