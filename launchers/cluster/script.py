"""The sbatch script of a batch, written by submitit; its command names only paths that were fixed before."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from launchers.calls import Resources
from launchers.cluster.batches import Batch
from launchers.cluster.job_end import prologue
from launchers.cluster.profile import Profile
from maskgit_core.errors import LaunchError


class _Executor(submitit.SlurmExecutor):
    """submitit's writer of sbatch scripts, with a command of ours instead of a pickle.

    A pickle gets the job's id into its name after sbatch has returned; a submission killed in between leaves jobs that
    wait for it in vain.
    """

    command = ""

    @property
    def _submitit_command_str(self) -> str:
        return self.command

    def text(self, tasks: int) -> str:
        """The script of a job, or of an array of several tasks."""
        if tasks > 1:
            self.parameters["map_count"] = tasks
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def script(
    launcher: Profile,
    batch: Batch,
    folder: Path,
    name: str,
    code: Path,
    *,
    dependency: str = "",
    link: int = 0,
    avoid: Sequence[str] = (),
) -> str:
    """The text of the sbatch script.

    Args:
        launcher: the cluster's profile.
        folder: the batch folder, which the job reads.
        code: folder put first on the job's module path; the job also starts there.
        link: place in a chain of jobs.
        avoid: nodes to stay away from besides `launcher.exclude`.
    """
    wanted = batch.resources
    needed = [store_of(folder), code]
    python = launcher.python or ("python" if launcher.container else shlex.quote(_this_python()))
    if launcher.container is not None:
        python = launcher.container.command(python, needed, gpus=wanted.gpus > 0)
    executor = _Executor(folder=folder, python=python)
    executor.command = f"{python} -u -m launchers.cluster.task {shlex.quote(str(folder))} & maskgit_wait $!"
    minutes = time_limit(launcher, wanted)
    signal_s = signal_seconds(launcher, minutes)
    hook = _hook(batch, folder, python, code)
    before = prologue(folder, link, launcher.requeue, wanted.retry, signal_s, hook=hook)
    executor.update_parameters(
        job_name=name,
        time=None if minutes is None else max(1, round(minutes)),
        nodes=wanted.nodes,
        ntasks_per_node=wanted.ranks // wanted.nodes,
        cpus_per_task=wanted.cpus_per_task,
        mem=memory(launcher, wanted),
        partition=partition(launcher, wanted),
        account=wanted.account or launcher.account,
        qos=wanted.qos or launcher.qos,
        constraint=wanted.constraint or launcher.constraint,
        exclude=",".join([*([launcher.exclude] if launcher.exclude else []), *avoid]) or None,
        dependency=dependency or None,
        setup=[*before, *_setup(launcher, code)],
        signal_delay_s=signal_s,
        array_parallelism=min(launcher.max_parallel, len(batch.tasks)),
        stderr_to_stdout=True,
        wckey=None,
        srun_args=_srun_args(launcher, wanted, needed),
        additional_parameters=_additional(launcher, wanted),
    )
    try:
        return executor.text(len(batch.tasks))
    except (TypeError, ValueError) as error:
        raise LaunchError(f"launcher.sbatch: {error}") from error


def _hook(batch: Batch, folder: Path, python: str, code: Path) -> str:
    """The call that the job script makes after the end of a task that somebody wants to hear of."""
    if not any(call.ended for task in batch.tasks for call in task):
        return ""
    place = shlex.quote(str(code))
    return (
        f"cd {place} && PYTHONPATH={place} timeout 120 {python} -m launchers.cluster.ended {shlex.quote(str(folder))}"
    )


def _srun_args(launcher: Profile, wanted: Resources, needed: Sequence[Path]) -> list[str]:
    return [
        "--export=ALL",
        "--kill-on-bad-exit=1",
        f"--cpu-bind={_cpu_bind(launcher, wanted)}",
        f"--cpus-per-task={wanted.cpus_per_task}",  # since 22.05 srun does not take it over from sbatch
        *(launcher.container.srun_args(needed) if launcher.container else ()),
        *launcher.srun_args,
    ]


def _additional(launcher: Profile, wanted: Resources) -> dict[str, Any]:
    """Options of sbatch that submitit has no parameter for; null and false take one back."""
    options: dict[str, Any] = {
        "hold": True,
        "output": "/dev/null",  # job_end.sh opens the log: where SLURM cannot, the job ends without a word
        "export": "ALL",
        "kill-on-invalid-dep": "yes",
        ("requeue" if launcher.requeue == "scontrol" else "no-requeue"): True,
        "reservation": launcher.reservation,
        **_gpu_options(launcher, wanted),
        **launcher.sbatch,
    }
    return {key: value for key, value in options.items() if value is not None and value is not False}


def _this_python() -> str:
    import sys

    return sys.executable


def _setup(launcher: Profile, code: Path) -> list[str]:
    quoted = shlex.quote(str(code))
    return [
        *launcher.setup,
        # The working folder comes first on Python's path: jobs start in the frozen copy, never in a live checkout.
        f"cd {quoted} || exit 1",
        f'export PYTHONPATH={quoted}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]


def _gpu_options(launcher: Profile, wanted: Resources) -> dict[str, str]:
    if not wanted.gpus_per_task:
        return {}
    per_node = wanted.gpus // wanted.nodes
    gpu_type = wanted.gpu_type or launcher.gpu_type
    kind = f"{gpu_type}:" if gpu_type else ""
    if launcher.gpu_option == "gres":
        return {"gres": f"gpu:{kind}{per_node}"}
    return {"gpus-per-node": f"{kind}{per_node}"}


def memory(launcher: Profile, wanted: Resources) -> str | None:
    """Memory of a node as sbatch takes it; None leaves it to the site."""
    gigabytes = wanted.mem_gb if wanted.mem_gb is not None else launcher.mem_gb
    return None if gigabytes is None else f"{max(1, round(gigabytes * 1024))}M"


def time_limit(launcher: Profile, wanted: Resources) -> float | None:
    """Minutes; None leaves it to the site."""
    minutes = wanted.timeout_min if wanted.timeout_min is not None else launcher.timeout_min
    if minutes is None or launcher.max_time_min is None:
        return launcher.max_time_min if minutes is None else minutes
    return min(minutes, launcher.max_time_min)


def partition(launcher: Profile, wanted: Resources) -> str | None:
    """The partition of a call: its own, that for steps without GPUs, or the launcher's; None: the site's default."""
    without_gpus = launcher.cpu_partition if not wanted.gpus_per_task else None
    return wanted.partition or without_gpus or launcher.partition


def store_of(folder: Path) -> Path:
    """The store of a batch folder, `<store>/slurm/<submission>/<batch>`; whatever steps read and write is below it."""
    return folder.parents[2] if len(folder.parents) > 2 else folder


def _cpu_bind(launcher: Profile, wanted: Resources) -> str:
    """Few cores are not worth a NUMA node of their own: a process bound to one could lose cores it was given."""
    if launcher.cpu_bind != "auto":
        return launcher.cpu_bind
    return "none" if wanted.cpus_per_task < 4 else "ldoms"


def signal_seconds(launcher: Profile, minutes: float | None) -> int:
    """How long before the end of the time limit the job is told to save: at most a quarter of a short limit."""
    return launcher.signal_s if minutes is None else max(10, min(launcher.signal_s, int(minutes * 15)))
