"""A store shared by a group: another user's work is used and shown, never touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import LAB, ROOT, digests, step_folder, wait_until

pytest_plugins = ["slurm_fixtures"]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root (with setpriv) can be two users"
    ),
]
NOBODY = 65534


@pytest.fixture
def other(store: Path, tmp_path: Path) -> Run:
    """`maskgit ...` as another user of the same group, who may read everything but write only what the group may."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights]
        return subprocess.run(
            [*drop, sys.executable, "-m", "experiments.cli", *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=300,
            env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
                 "USER": "nobody", "LOGNAME": "nobody", "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip

    return call


def test_foreign_work_is_used_and_shown_but_never_cancelled(cluster, store: Path, on_slurm: Run, other: Run) -> None:
    store.mkdir()
    os.chown(store, -1, NOBODY)
    store.chmod(0o2775)
    slow = ("numbers.count=40", "numbers.pause_s=0.25")
    on_slurm("experiment=chain", *slow)
    wait_until(lambda: list((step_folder(store, "numbers") / "parts").glob("*.json")))
    assert re.search(r"numbers +running", other("status", "chain").stdout)
    refused = other("cancel", "chain")
    assert len(re.findall(r"^left alone .*root's job .*only they can cancel it$", refused.stdout, re.MULTILINE)) == 2, (
        refused
    )
    lab = ("--config-dir", str(LAB))
    shared = other("run", "launcher=dev_cluster", "experiment=chain", *slow, "tracking.ship=false", *lab)
    assert shared.returncode == 0 and "nothing to " in shared.stdout, shared
    cluster.idle()
    assert len(digests(store)) == 2
    mine = other("run", "launcher=inline", "experiment=diamond", *slow, "tracking.ship=false", *lab)
    assert mine.returncode == 0, mine
    assert len(digests(store)) == 4, "two steps were there"
    owners = {p.stat().st_uid for p in store.glob("*/*/manifest.json")}
    assert owners == {0, NOBODY}
    shutil.rmtree(store / "experiments")
    kept = other("gc", "--delete")
    assert "nothing to delete" in kept.stdout and len(digests(store)) == 4, "recorded runs keep what they made"
