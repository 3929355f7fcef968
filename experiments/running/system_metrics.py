"""System metrics of a running step: CPU, memory and the job's own GPUs, sampled into the journal.

Samples are points under `system/`; their step is whole seconds since the step's first attempt began, so that curves of
several attempts follow one another. Only this process with its children and only the job's GPUs are looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Any

from experiments.running.attempt import Attempt
from experiments.store.documents import Start
from experiments.store.journal import SYSTEM_PREFIX
from experiments.store.paths import StepFolder

Log = Callable[[dict[str, float], int], None]


class SystemMetrics:
    """Samples in a background thread between `with` and its end.

    Args:
        log: takes `({metric: value}, seconds)`, e.g. `attempt.log`.
        began: Unix time at which the step's first attempt began.
        every_s: seconds between samples.
    """

    def __init__(self, log: Log, began: float | None = None, every_s: float = 10.0) -> None:
        self._log = log
        self._began = began if began is not None else time.time()
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._last_step = -1
        self.peak_gb = 0.0  # most memory seen in a sample

    def __enter__(self) -> SystemMetrics:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        with suppress(Exception):  # onlookers must never stop the work
            processes, gpus = Processes(), Gpus()
            while not self._stop.wait(self._every_s):
                step = int(time.time() - self._began)
                if step > self._last_step:
                    self._last_step = step
                    sample = {**processes.sample(), **gpus.sample()}
                    self.peak_gb = max(self.peak_gb, sample[f"{SYSTEM_PREFIX}system_memory_usage_megabytes"] / 1e3)
                    self._log(sample, step)


def system_metrics(attempt: Attempt) -> AbstractContextManager[SystemMetrics | None]:
    """Samples into an attempt's journal while the block runs; nothing in processes other than rank 0."""
    if not attempt.is_main:
        return nullcontext()
    first = Start.read(StepFolder(attempt.folder).attempt(1).path)
    return SystemMetrics(attempt.log, first.time if first else None)


def peak_memory_gb(metrics: SystemMetrics | None) -> float:
    """Most resident memory of this process with its children so far, in 10^9 bytes."""
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return max(own, metrics.peak_gb if metrics else 0.0)


class Processes:
    """CPU and memory of this process and its children."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._me = psutil.Process()
        self._seconds = self._cpu_seconds(self._family())
        self._time = time.monotonic()

    def _family(self) -> list[Any]:
        with suppress(self._psutil.Error):
            return [self._me, *self._me.children(recursive=True)]
        return [self._me]

    def _cpu_seconds(self, family: Sequence[Any]) -> dict[int, float]:
        seconds = {}
        for process in family:
            with suppress(self._psutil.Error):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
        return seconds

    def sample(self) -> dict[str, float]:
        """Share of the job's cores in use since the last sample and resident memory (10^6 bytes), under MLflow's names:

        `system/cpu_utilization_percentage`, `system/system_memory_usage_megabytes`.
        """
        family = self._family()
        seconds, now = self._cpu_seconds(family), time.monotonic()
        used = sum(value - self._seconds.get(pid, 0.0) for pid, value in seconds.items())
        resident = 0
        for process in family:
            with suppress(self._psutil.Error):
                resident += process.memory_info().rss
        elapsed = max(now - self._time, 1e-3)
        self._seconds, self._time = seconds, now
        share = 100.0 * used / elapsed / len(os.sched_getaffinity(0))
        return {
            f"{SYSTEM_PREFIX}cpu_utilization_percentage": share,
            f"{SYSTEM_PREFIX}system_memory_usage_megabytes": resident / 1e6,
        }


def own_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs a job may use, as CUDA_VISIBLE_DEVICES names them; None for all of the machine.

    A SLURM job that asked for no GPU has none, whatever the node holds.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [d.strip() for d in named.split(",") if d.strip() and d.strip() != "-1"]
    in_job, given = (
        "SLURM_JOB_ID" in environment,
        environment.get("SLURM_JOB_GPUS", environment.get("GPU_DEVICE_ORDINAL")),
    )
    if in_job:
        return [d.strip() for d in given.split(",") if d.strip()] if given else []
    return None


class Gpus:
    """Load, memory and power of the job's GPUs through NVML; silent where there is none."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._handles: list[object] = []
        self._nvml: Any = None
        wanted = own_gpus(os.environ if environment is None else environment)
        if wanted == []:
            return
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            names = [str(i) for i in range(pynvml.nvmlDeviceGetCount())] if wanted is None else wanted
            self._handles = [self._handle(name) for name in names]

    def _handle(self, name: str) -> object:
        if name.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self._nvml.nvmlDeviceGetHandleByUUID(name)

    def sample(self) -> dict[str, float]:
        """`system/gpu_<n>_utilization_percentage`, `_memory_usage_megabytes`, `_power_usage_watts`; n from 0."""
        values: dict[str, float] = {}
        for number, handle in enumerate(self._handles):
            name = f"{SYSTEM_PREFIX}gpu_{number}"
            with suppress(Exception):  # a MIG slice has no utilization, some boards no power
                values[f"{name}_memory_gb"] = self._nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9
            with suppress(Exception):
                values[f"{name}_utilization_percentage"] = float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            with suppress(Exception):
                values[f"{name}_power_usage_watts"] = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
        return values
