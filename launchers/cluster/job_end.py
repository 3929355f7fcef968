"""The part of a job script that runs on the host, outside any container, before and after the step's processes.

It decides what the end of a job means and runs the job again where `resources.<step>.retry` wants that: no process of
ours waits anywhere. `scontrol requeue` keeps the job's id, so that what needs it goes on waiting; a job that was
requeued counts as pending at once, and its owner may then change its memory and the nodes it avoids. It works where the
step's container has no SLURM clients, and where SLURM itself would not requeue (`PreemptMode=CANCEL`). It also notes
the end of a job that never came as far as its step.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from launchers.retry import Retry

_SHELL = Path(__file__).with_suffix(".sh")


def prologue(
    folder: Path, link: int, requeue: str, retry: Retry | None = None, signal_s: int = 120, *, hook: str = ""
) -> list[str]:
    """Shell lines for the beginning of a job script.

    Args:
        folder: the batch folder.
        link: place in a chain of jobs.
        requeue: "scontrol" or "chain".
        retry: what is run again; None: the defaults.
        signal_s: seconds before the time limit at which the step is told to save.
        hook: shell command called with the task's index and exit code once it has ended for good; empty for none.
    """
    policy = retry or Retry()
    return [
        f"maskgit_notes={shlex.quote(str(folder))} maskgit_requeue={requeue} maskgit_signal_s={signal_s}",
        f"maskgit_oom_max={policy.oom_max} maskgit_oom_grow={policy.oom_grow} maskgit_own_error={policy.own_error}",
        f"maskgit_timeout={policy.timeout:d} maskgit_preempted={policy.preempted:d} "
        f"maskgit_node_fail={policy.node_fail:d} maskgit_exclude={policy.exclude and policy.node_fail:d}",
        f"maskgit_disk_max={policy.disk_max} maskgit_disk_wait_s={round(policy.disk_wait_min * 60)}",
        f"maskgit_hook={shlex.quote(hook)}",
        f"export MASKGIT_CHAIN_LINK={link}",
        *_SHELL.read_text().strip().splitlines(),
    ]
