"""`retry`, `cancel` and `notify` with a search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import LAB, ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["search", "tuned", "launcher=local", "search.workers=1", "tracking.ship=false"]


def trials(lab: Run) -> list[str]:
    told = json.loads(lab("search", "tuned", "--status", "--json").stdout)
    return [trial["state"] for trial in told["trials"]]


def test_a_search_is_cancelled_retried_and_told_of(lab: Run, maskgit: Run, store: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    asked = [*SMALL, "search.trials=2", f"notify.command='cat >> {told}'", "search.prune=null"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *asked, "train.step_s=0.2", "--config-dir", str(LAB)],
        cwd=tmp_path, env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(store.glob("logistic/*/attempts/*/checkpoints/state.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    cancelled = maskgit("cancel", "tuned")
    assert cancelled.returncode == 0 and "asked the worker of trial 0" in cancelled.stdout, cancelled.stderr
    assert process.wait(120) != 0 and not told.exists()
    again = maskgit("retry", "tuned", "train.step_s=0")
    assert again.returncode == 0 and "again: maskgit search tuned" in again.stdout, again.stdout + again.stderr
    assert trials(lab) == ["done", "done"], "the search goes on, and not the experiment as it is"
    assert told.read_text().count("tuned: its search is done: 2 done; best nll") == 1
    more = maskgit("retry", "tuned", "search.trials=3")
    assert more.returncode == 0 and len(trials(lab)) == 3, more.stderr
    assert told.read_text().count("its search is done") == 2
    part = maskgit("retry", "tuned/1")
    assert part.returncode == 2 and "is a part of a search; maskgit retry tuned goes on with it" in part.stderr


def test_a_trial_that_fails_is_told_of(lab: Run, tmp_path: Path) -> None:
    told = tmp_path / "told"
    done = lab(*SMALL, "search.trials=1", "search.prune=null", "train.fail_above=0", f"notify.command='cat >> {told}'")
    assert done.returncode in (0, 1), done.stderr
    first, last = told.read_text().splitlines()
    assert first.startswith("tuned: trial 0 of its search failed: ") and "its search is done: 1 failed (" in last
