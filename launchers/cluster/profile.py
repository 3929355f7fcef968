"""The settings of a cluster that scripts and checks read; `launchers/slurm.py` explains each."""

from __future__ import annotations

from typing import Literal, Protocol

from launchers.cluster.container import Container


class Profile(Protocol):
    """A cluster's profile: where jobs go, what they get, and how they come back after an interruption."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    cpu_partition: str | None
    reservation: str | None
    exclude: str | None
    gpu_type: str | None
    gpu_option: Literal["gpus-per-node", "gres"]
    timeout_min: float | None
    mem_gb: float | None
    max_time_min: float | None
    max_parallel: int
    max_array_size: int | None
    setup: list[str]
    python: str | None
    container: Container | None
    cpu_bind: str
    srun_args: list[str]
    sbatch: dict[str, str | int | float | bool | None]
    signal_s: int
    requeue: Literal["scontrol", "chain"]
    max_attempts: int
    max_idle_restarts: int
    exclude_after: int
