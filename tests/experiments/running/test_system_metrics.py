"""System metrics: the job's own GPUs only, and never a reason for the work to stop."""

import sys
import time
import types

import pytest

from experiments.running.system_metrics import Gpus, Processes, SystemMetrics, own_gpus
from experiments.store.journal import Journal, read_points


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aa, MIG-bb"}, ["GPU-aa", "MIG-bb"]),
        ({"SLURM_JOB_ID": "7"}, []),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "1"}, ["1"]),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, ["0"]),
    ],
)
def test_only_the_jobs_own_gpus(environment, wanted):
    assert own_gpus(environment) == wanted


class Nvml(types.ModuleType):
    """Stands for NVML at the border: four boards, one of which cannot tell its power."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.asked = []

    def nvmlInit(self): ...  # noqa: N802

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 4

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return types.SimpleNamespace(used=2e9 + handle)

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return types.SimpleNamespace(gpu=50 + handle)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        if handle == 3:
            raise RuntimeError("not supported")
        return 300_000


def test_gpus_are_counted_from_the_jobs_first(monkeypatch):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = Gpus({"CUDA_VISIBLE_DEVICES": "2,3"}).sample()
    assert nvml.asked == [2, 3]
    assert found["system/gpu_0_utilization_percentage"] == 52 and found["system/gpu_1_utilization_percentage"] == 53
    assert found["system/gpu_0_power_usage_watts"] == 300 and "system/gpu_1_power_usage_watts" not in found
    nvml.asked.clear()
    Gpus({"SLURM_JOB_ID": "7"}).sample()
    assert nvml.asked == []


def test_a_busy_process_shows_its_load_and_memory():
    processes = Processes()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    found = processes.sample()
    assert found["system/cpu_utilization_percentage"] > 0 and found["system/system_memory_usage_megabytes"] > 5


def test_samples_reach_the_journal_and_a_failing_sampler_stops_nothing(tmp_path, monkeypatch):
    path = tmp_path / "attempts" / "0001" / "journal.jsonl"
    wanted = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    with Journal(path) as journal, SystemMetrics(journal.log, began=time.time() - 100, every_s=0.02):
        until = time.monotonic() + 20  # a machine may be busy
        while not {p.metric for p in read_points(tmp_path)} >= wanted and time.monotonic() < until:
            time.sleep(0.05)
    points = read_points(tmp_path)
    assert {p.metric for p in points} >= wanted
    assert all(100 <= p.step <= 200 for p in points)

    def broken(metrics, step):
        raise RuntimeError("full")

    with SystemMetrics(broken, every_s=0.01):
        time.sleep(0.1)
