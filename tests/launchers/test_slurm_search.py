"""A search on a real SLURM: workers as an array that come and go, each killed once, and nothing of ours left behind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import wait_until
from toylab import search_drill as drill

pytest_plugins = ["slurm_fixtures"]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(5400)]
SEARCH = ["search", "tuned", "launcher=dev_cluster", "tracking.ship=false"]


def told(lab: Run) -> dict[str, object]:
    return json.loads(lab("search", "tuned", "--status", "--json").stdout)  # type: ignore[no-any-return]


def submit(lab: Run, *more: str) -> str:
    done = lab(*SEARCH, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_workers_come_back_after_a_kill_and_a_cancelled_search_goes_on(cluster, lab: Run, store: Path) -> None:
    more = ["search.trials=6", "search.workers=2", "train.step_s=0.02"]
    assert "submitted 2 workers for 6 trials" in submit(lab, *more)
    again = submit(lab, *more)
    assert "nothing to start: 2 workers are in the queue" in again and len(cluster.live()) == 2
    assert len(drill.kill_workers(store, 1, 0, lambda: not cluster.live())) == 1
    wait_until(lambda: any(trial["values"] for trial in told(lab)["trials"]))
    cancelled = lab("search", "tuned", "--cancel")
    assert "cancelled workers" in cancelled.stdout, cancelled.stderr
    cluster.idle()
    assert any(trial["state"] == "running" for trial in told(lab)["trials"])
    submit(lab, *more)
    cluster.idle()
    drill.check(told(lab), store, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_sixty_trials_with_every_worker_killed_once(cluster, lab: Run, store: Path, seed: int) -> None:
    submit(lab, f"search.seed={seed}", "train.step_s=0.02")
    killed = drill.kill_workers(store, 4, seed, lambda: not cluster.live())
    wait_until(lambda: not cluster.live(), 3000)
    ratio, share = drill.check(told(lab), store, 60)
    print(f"seed {seed}: {len(killed)} workers killed, best / best of the grid {ratio:.4f}, {share:.1%} of its steps")
    assert len(killed) == 4 and ratio <= 1.01 and share <= 0.30
