"""What SLURM's queue says of jobs, asked at most once a command; only ever a hint, and its absence is no error."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from experiments.claims import JobAlive


def job_alive() -> JobAlive | None:
    """Answers whether a job id is in the queue; None where there is no SLURM on this machine."""
    if shutil.which("squeue") is None or find_spec("launchers.slurm_queue") is None:
        return None
    from launchers.slurm_queue import Queue

    return Queue().alive


def queued_jobs(store: Path) -> dict[str, tuple[str, str]]:
    """fingerprint -> (job id, reason) of steps that wait in the queue; empty where there is no SLURM."""
    if shutil.which("squeue") is None or find_spec("launchers.slurm_queue") is None:
        return {}
    from launchers import slurm_queue

    waiting = getattr(slurm_queue, "waiting_steps", None)
    return dict(waiting(store)) if waiting else {}
