"""Faults of every kind, at seeded moments, into one DAG on a real SLURM, and nobody lifts a finger.

`python -m pytest -m slurm tests/launchers/test_slurm_faults.py -k hundred`, with MASKGIT_FAULT_SEED for another draw.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server
from slurm_cluster import LAB, ROOT, Cluster, digests, new_cluster, wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(5400)]

PARTITIONS = (
    "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF",
    "PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
    "PartitionName=lowc Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=0",
    "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
)
#: Five steps an item: two sets of numbers, their totals, the difference. The first item of each sweep is slow enough to
#: meet its time limit of a minute.
EXPERIMENT = """\
# @package _global_
plugins: [toylab]
pipeline:
  steps:
    a: {stage: numbers}
    b: {stage: numbers}
    total_a: {stage: total, needs: [a]}
    total_b: {stage: total, needs: [b]}
    difference: {stage: difference, needs: {left: total_a, right: total_b}}
a: {count: 8, pause_s: 4}
b: {count: 9, pause_s: 4}
resources:
  numbers: {mem_gb: 0.5, retry: {oom: {max: 8}, disk_full: {wait_min: 0.05, max: 50}}}
  total: {mem_gb: 0.5, retry: {oom: {max: 8}, disk_full: {wait_min: 0.05, max: 50}}}
  difference: {mem_gb: 0.5, retry: {oom: {max: 8}, disk_full: {wait_min: 0.05, max: 50}}}
  a: {partition: low}
  b: {partition: lowc}
  total_a: {partition: lowc}
"""
#: Read here, as no test sees the caller's MASKGIT_ variables.
SEED = int(os.environ.get("MASKGIT_FAULT_SEED", "1"))
#: Faults of a hundred; time limits come by themselves, from the slow items.
HUNDRED = {"oom": 22, "node": 10, "disk": 8, "requeue": 15, "cancel": 15, "ctld": 6, "mlflow": 6, "submission": 8}
SLOW_ITEMS = {100: 10, 10: 1}


@pytest.fixture  # KillWait as SLURM has it, so that a job script can requeue on a loaded machine too
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = new_cluster(f"/tmp/mgf{os.getpid()}", 40025 + os.getpid() % 200 * 50, NODES="6", CPUS="3", ACCT="0",
                       OVERRIDES=";".join(("PreemptMode=REQUEUE", "KillWait=30", *PARTITIONS)))  # fmt: skip
    monkeypatch.setenv("SLURM_CONF", str(made.folder / "slurm.conf"))
    yield made
    made.script("stop.sh")


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    """A store on a disk of its own, which can be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place / "store"
    subprocess.run(["umount", "-l", str(place)], check=False)


class Faults:
    """Draws faults and does them; a fault counts once it hit something that was running."""

    def __init__(self, seed: int, cluster: Cluster, store: Path, server: Server, submit: list[str]) -> None:
        self.random = random.Random(seed)
        self.cluster, self.store, self.server, self.submit = cluster, store, server, submit
        self.done: collections.Counter[str] = collections.Counter()
        self.locks = {kind: threading.Lock() for kind in HUNDRED}
        self.threads: list[threading.Thread] = []
        self.missed: list[str] = []  # they found nothing to hit
        self.environment = {**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT)}

    def running(self, *partitions: str) -> list[tuple[str, str]]:
        """Job and node of what runs."""
        told = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%i %N %P %u"], capture_output=True, text=True)
        lines = [line.split() for line in told.stdout.splitlines()]
        return sorted((x[0], x[1]) for x in lines if len(x) == 4 and (not partitions or x[2] in partitions))

    def owners(self) -> list[int]:
        found = []
        for path in sorted(self.store.glob("*/*/claim.json")):
            with suppress(OSError, ValueError):
                found.append(int(json.loads(path.read_text())["pid"]))
        return found

    def oom(self) -> bool:
        """SIGKILL for a process of a step, as the kernel does where memory runs out."""
        owners = self.owners()
        if not owners:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(owners), signal.SIGKILL)
            return True
        return False

    def node(self) -> bool:
        jobs = self.running()
        if not jobs:
            return False
        node = self.random.choice(jobs)[1]
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=drill"], check=False)
        time.sleep(self.random.uniform(0.5, 3))
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        return True

    def disk(self) -> bool:
        """Fills the store's disk for some seconds."""
        if not self.running():
            return False
        ballast = self.store.parent / "ballast"
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * (1 << 20))
        with suppress(OSError), open(self.store.parent / "ballast-small", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        time.sleep(self.random.uniform(1, 4))
        for path in (ballast, self.store.parent / "ballast-small"):
            path.unlink(missing_ok=True)
        return True

    def _preempt(self, partition: str) -> bool:
        jobs = self.running(*([partition]))
        if not jobs:
            return False
        node = self.random.choice(jobs)[1]
        more = ["-w", node, "-c", "3", "--mem=100"]
        subprocess.run(["sbatch", "-o", "/dev/null", "-p", "high", *more, "--wrap", "true"],
                       capture_output=True, check=False)  # fmt: skip
        return True

    def requeue(self) -> bool:
        return self._preempt("low")

    def cancel(self) -> bool:
        return self._preempt("lowc")

    def ctld(self) -> bool:
        with suppress(OSError, ValueError):
            os.kill(int((self.cluster.folder / "run" / "slurmctld.pid").read_text()), signal.SIGTERM)
        time.sleep(self.random.uniform(1, 4))
        nothing = subprocess.DEVNULL
        for _ in range(20):
            subprocess.run(["slurmctld"], check=False, stdout=nothing, stderr=nothing)
            if subprocess.run(["squeue", "-h"], capture_output=True).returncode == 0:
                return True
            time.sleep(1)
        raise AssertionError("slurmctld does not come back")

    def mlflow(self) -> bool:
        self.server.kill()
        time.sleep(self.random.uniform(1, 6))
        self.server.start()
        return True

    def submission(self) -> bool:
        """The same submission once more, killed on its way."""
        process = subprocess.Popen(self.submit, env=self.environment, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(self.random.uniform(1, 8))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def one(self, kind: str) -> bool:
        """Does a fault beside others of other kinds; False where one of this kind is under way."""
        if not self.locks[kind].acquire(blocking=False):
            return False

        def work() -> None:
            try:
                if getattr(self, kind)():
                    self.done[kind] += 1
                else:
                    self.missed.append(kind)
            finally:
                self.locks[kind].release()

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        return True

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def is_idle() -> bool:
    told = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True)
    return told.returncode == 0 and not told.stdout.split()


@pytest.mark.parametrize("share", [100, 10], ids=["hundred", "ten"])
def test_faults_change_nothing(faulty: Cluster, small_store: Path, lab: Run, tmp_path: Path, share: int) -> None:
    items = 80 * share // 100
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "sweep").mkdir()
    (conf / "experiment" / "faults.yaml").write_text(EXPERIMENT)
    slow = [9.0 if i < SLOW_ITEMS[share] else 4.0 for i in range(items)]
    (conf / "sweep" / "items.yaml").write_text(
        json.dumps({"zip": {"a.scale": [1.0 + i for i in range(items)], "b.scale": [0.5 + i for i in range(items)],
                            "a.pause_s": slow}})
    )  # fmt: skip
    asked = ["experiment=faults", "sweep=items", "--config-dir", str(conf)]
    other = tmp_path / "undisturbed"
    (conf / "sweep" / "quick.yaml").write_text(
        json.dumps({"zip": {"a.scale": [1.0 + i for i in range(items)], "b.scale": [0.5 + i for i in range(items)]}})
    )
    done = lab("run", "launcher=inline", "experiment=faults", "sweep=quick", "--config-dir", str(conf), "a.pause_s=0",
               "b.pause_s=0", env={"MASKGIT_STORE": str(other)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = digests(other)
    assert len(wanted) == 5 * items
    submit = [sys.executable, "-m", "experiments.cli", "run", "launcher=dev_cluster", *asked, "--config-dir", str(LAB),
              "resources.a.timeout_min=1", "launcher.signal_s=15", "launcher.max_idle_restarts=20",
              "launcher.exclude_after=0", "tracking.ship=false"]  # fmt: skip
    with Server(tmp_path / "mlflow") as server:
        faults = Faults(SEED, faulty, small_store, server, submit)
        began = time.time()
        for _ in range(3 * share // 100):  # killed before anything was released
            faults.one("submission")
        first = subprocess.run(submit, env=faults.environment, capture_output=True, text=True)
        assert first.returncode == 0, first.stdout + first.stderr
        follower = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", "sync", "--follow", "--uri", server.uri, "--store",
             str(small_store)], env=faults.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        drawn = [kind for kind, count in HUNDRED.items() for _ in range(max(1, count * share // 100))]
        faults.random.shuffle(drawn)
        while (drawn or faults.missed) and not is_idle():
            drawn += [faults.missed.pop() for _ in range(len(faults.missed))]
            if drawn and faults.one(kind := faults.random.choice(drawn)):
                drawn.remove(kind)
            time.sleep(faults.random.uniform(0.2, 1.0))
        faults.join()
        wait_until(is_idle, 3600)
        report(faults, wanted, small_store, time.time() - began, SEED)
        explain_missing(wanted, small_store)
        follower.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            follower.wait(600)
        follower.kill()  # what it had not shipped, the next sync ships
        assert digests(small_store) == wanted
        assert not drawn and not faults.missed, f"the DAG had ended before these: {drawn} {faults.missed}"
        synced = subprocess.run([sys.executable, "-m", "experiments.cli", "sync", "--uri", server.uri, "--store",
                                 str(small_store)], env=faults.environment, capture_output=True, text=True)  # fmt: skip
        assert synced.returncode == 0, synced.stderr
    nothing_doubled(small_store, tmp_path / "mlflow" / "server.db", 5 * items)
    memory_grew(small_store)


def retries(store: Path) -> list[dict[str, Any]]:
    paths = sorted(store.glob("slurm/*/*/retries/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def report(faults: Faults, wanted: dict[str, str], store: Path, seconds: float, seed: int) -> None:
    found = digests(store)
    limits = sum(entry["reason"] in ("saved", "timeout") for entry in retries(store))
    print(f"\nseed {seed}: {sum(faults.done.values())} faults {dict(faults.done)}, {limits} time limits or signals, "
          f"in {seconds:.0f} s; run again: {dict(collections.Counter(str(r['reason']) for r in retries(store)))}; "
          f"{sum(found.get(k) == v for k, v in wanted.items())} of {len(wanted)} steps with equal bytes; attempts: "
          f"{sum(1 for _ in store.glob('*/*/attempts/*'))}", flush=True)  # fmt: skip


def explain_missing(wanted: dict[str, str], store: Path) -> None:
    """Prints what is known of steps that did not end well."""
    found = digests(store)
    for path in sorted(store.glob("*/*/request.json")):
        if json.loads(path.read_text())["fingerprint"] in set(wanted) - set(found):
            note = json.loads((path.parent / "submitted.json").read_text())
            print(path.parent, note["links"], [p.name for p in path.parent.iterdir()])
            for end in sorted(path.parent.glob("attempts/*/end*.json")):
                print("  ", end.parent.name, end.read_text())
            for log in store.glob(f"slurm/{note['pipeline']}/*/{note['links'][0]}_*log.out"):
                print(log.read_text()[-3000:])
                index = note["links"][0].partition("_")[2] or "0"
                for more in sorted(log.parent.glob(f"*/{index}[-.]*")):
                    print("  ", more.relative_to(log.parent), more.read_text()[:400])
            for log in sorted(path.parent.glob("logs/*")):
                print(log.read_text()[-3000:])


def nothing_doubled(store: Path, database: Path, steps: int) -> None:
    """One result a step, each number once in its journal as it counts, one MLflow run a step and each point once."""
    for manifest in store.glob("*/*/manifest.json"):
        number = json.loads(manifest.read_text())["attempt"]
        assert number == max(int(p.name) for p in (manifest.parent / "attempts").iterdir()), manifest
    with sqlite3.connect(database) as connection:
        (twice,) = connection.execute(
            "select count(*) from (select 1 from metrics where key not like 'system/%' "
            "group by run_uuid, key, step having count(*) > 1)"
        ).fetchone()
        runs = connection.execute("select value from tags where key = 'maskgit.uid'").fetchall()
        nested = connection.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    assert twice == 0
    assert len(runs) == len(set(runs)), "a run exists twice"
    assert nested == steps


def memory_grew(store: Path) -> None:
    """Every job that ran out of memory had more in its next life."""
    out = [entry for entry in retries(store) if entry["reason"] == "oom"]
    assert out
    for entry in out:
        assert str(entry["changes"]).startswith("MinMemoryNode="), entry
    grown = collections.Counter(entry["job"] for entry in out)
    for job, count in grown.items():
        sizes = [int(e["changes"].partition("=")[2]) for e in out if e["job"] == job]
        assert sizes == [512 * 2**n for n in range(1, count + 1)], (job, sizes)
