"""A real SLURM for the tests that need one, and what they ask it.

The fixtures are in slurm_fixtures.py; the cluster itself is started once, whoever asks first.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests" / "toylab" / "conf"
DEV_CLUSTER = ROOT / "tools" / "dev_cluster"


class Cluster:
    """The throw-away cluster of tools/dev_cluster.

    Args:
        settings: environment of start.sh: NODES, GPU_TYPE, ACCT, OVERRIDES (lines of slurm.conf), ...
    """

    def __init__(self, folder: Path, port: int, **settings: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_TEST_ROOT": str(folder), "PORT": str(port), **settings}

    def script(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(DEV_CLUSTER / name), *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """Job (element) -> state, of everything slurmctld remembers."""
        done = subprocess.run(
            ["squeue", "-h", "-r", "-t", "all", "-o", "%i %T"], capture_output=True, text=True, check=True
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def live(self) -> set[str]:
        done = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    def idle(self, timeout_s: float = 240) -> None:
        """Waits until nothing waits or runs."""
        wait_until(lambda: not self.live(), timeout_s)


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out; {subprocess.run(['squeue', '-r'], capture_output=True).stdout}"
        time.sleep(0.1)


_started: list[Cluster] = []


def start_cluster() -> Cluster:
    """The cluster of this test session."""
    if not _started:
        _started.append(new_cluster(f"/tmp/mgs{os.getpid()}", 10000 + os.getpid() % 400 * 50))
    return _started[0]


def new_cluster(folder: str, port: int, **settings: str) -> Cluster:
    """Starts a cluster; skips, or fails where REQUIRE names slurm, if SLURM is not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name, path=path)]
    if missing:
        told = f"{', '.join(missing)} not installed; run tools/dev_cluster/install.sh"
        (pytest.fail if "slurm" in os.environ.get("REQUIRE", "") else pytest.skip)(told)
    os.environ["PATH"] = path
    made = Cluster(Path(folder), port, **settings)
    atexit.register(made.script, "stop.sh")
    made.script("start.sh")
    return made


def digests(store: Path) -> dict[str, str]:
    """Fingerprint -> digest of every finished step."""
    found = [json.loads(path.read_text()) for path in store.glob("*/*/manifest.json")]
    return {manifest["fingerprint"]: manifest["digest"] for manifest in found}


def attempts_of(store: Path) -> dict[str, int]:
    """Step folder -> number of attempts."""
    return {p.parent.name: len(list((p.parent / "attempts").iterdir())) for p in store.glob("*/*/manifest.json")}


def step_folder(store: Path, name: str) -> Path:
    """The folder of a step by the name it was launched under."""
    for path in store.glob("*/*/launch.json"):
        if json.loads(path.read_text())["name"] == name:
            return path.parent
    raise AssertionError(f"no step {name} in {store}")
