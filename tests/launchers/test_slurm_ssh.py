"""`launcher.ssh` with a real SLURM behind it: submitted, followed, cancelled and retried from another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LAB, ROOT
from slurm_cluster import digests, wait_until
from ssh_server import Server

pytest_plugins = ["slurm_fixtures", "ssh_server"]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
CHAIN = ["chain", "launcher=site", "tracking.ship=false", "--config-dir", str(LAB)]
ON = ["--on", "site"]


@pytest.fixture
def conf(server: Server, cluster) -> list[str]:
    """The options that find a launcher which leads over ssh to the cluster."""
    setup = [f"export SLURM_CONF={cluster.folder}/slurm.conf", "export PATH=$PATH:/usr/sbin:/sbin"]
    keys = {"partition": "main", "signal_s": 20}
    return server.launcher("site", kind="slurm", keys=keys, setup=setup)


def states(maskgit: Run, conf: list[str]) -> dict[str, str]:
    done = maskgit("status", "chain", "--json", *ON, *conf)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["state"] for row in json.loads(done.stdout)[0]["steps"]}


def test_submitted_followed_cancelled_and_retried(server, conf, cluster, maskgit: Run, undisturbed) -> None:
    slow = ["numbers.count=1500", "numbers.pause_s=0.3"]
    planned = maskgit("plan", *CHAIN, *slow, *conf)
    assert planned.returncode == 0 and "GPU-hours" in planned.stdout, planned.stderr
    done = maskgit("run", *CHAIN, *slow, *conf)
    assert done.returncode == 0 and "submitted 2 steps" in done.stdout, done.stdout + done.stderr
    wait_until(lambda: list(server.store.glob("numbers/*/parts/00002.json")))
    assert states(maskgit, conf) == {"numbers": "running", "total": "queued"}
    assert "made 1" in maskgit("logs", "chain/numbers", *ON, *conf).stdout
    cancelled = maskgit("cancel", "chain", *ON, *conf)
    assert "cancelled numbers" in cancelled.stdout and "cancelled total" in cancelled.stdout, cancelled.stderr
    cluster.idle()
    assert states(maskgit, conf) == {"numbers": "cancelled", "total": "cancelled"}
    again = maskgit("retry", "chain", "numbers.pause_s=0", *ON, *conf)
    assert again.returncode == 0 and "submitted 2 steps" in again.stdout, again.stdout + again.stderr
    followed = maskgit("logs", "chain/numbers", "-f", *ON, *conf)
    assert followed.returncode == 0 and "made 1499" in followed.stdout, followed.stderr
    cluster.idle()
    assert states(maskgit, conf) == {"numbers": "done", "total": "done"}
    assert digests(server.store) == undisturbed("chain", slow[0]) and server.logins() == 1


@pytest.mark.parametrize("after", ["submission.json", "000/jobs.json"])
def test_a_connection_lost_in_the_middle_of_a_submission(
    server, conf, cluster, maskgit: Run, tmp_path: Path, undisturbed, after: str
) -> None:
    """Everything is held until all ids are on disk; the same command undoes or finishes it, and submits once."""
    sweep = "numbers.scale=1.0,2.0,3.0"
    assert maskgit("plan", *CHAIN, sweep, *conf).returncode == 0  # sends the code
    command = [sys.executable, "-m", "experiments.cli", "run", *CHAIN, sweep, *conf]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    while not list(server.store.glob(f"slurm/*/{after}")) and run.poll() is None:
        time.sleep(0.002)
    server.hang_up()
    said = run.communicate(timeout=300)[0]
    assert run.returncode in (0, 2) and ("was lost" in said or "submitted" in said), said
    again = maskgit("run", *CHAIN, sweep, *conf)
    assert again.returncode == 0, again.stdout + again.stderr
    cluster.idle()
    assert digests(server.store) == undisturbed("chain", sweep)
    attempts = [len(list(path.iterdir())) for path in server.store.glob("*/*/attempts")]
    assert attempts == [1] * 6, "nothing ran twice"
