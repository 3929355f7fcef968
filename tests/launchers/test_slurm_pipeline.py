"""Longer drills on a real SLURM with the real stages: cancelled in each, a sweep of trainings, one MLflow run."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import ROOT, attempts_of, digests, step_folder, wait_until
from test_slurm_tasks import TINY

from maskgit_core.files import read_json

pytest_plugins = ["slurm_fixtures"]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TURNS = (  # steps that run at the same time
    ("train_tokenizer", "reference_statistics"),
    ("cache_tokens", "eval_tokenizer"),
    ("train", "sample_untrained"),
    ("sample",),
    ("evaluate",),
    ("report",),
)


def jobs_in(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+) +submitted +(\d+(?:_\d+)?)", text, re.MULTILINE))


def rows(store: Path) -> dict[str, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "status", "--json", "--store", str(store)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return {row["name"]: row for row in json.loads(done.stdout)[0]["steps"]}


@pytest.mark.parametrize("how", ["scancel", "maskgit cancel"])
def test_cancelled_in_every_stage(cluster, store: Path, on_slurm: Run, undisturbed, maskgit: Run, how: str) -> None:
    generator, cancelled = random.Random(how), 0
    for steps in TURNS:
        jobs = jobs_in(on_slurm(*TINY).stdout)
        folders = [step_folder(store, step) for step in steps]
        wait_until(lambda folders=folders: any((folder / "claim.json").exists() for folder in folders), 240)
        time.sleep(generator.uniform(0, 1.5))
        if how == "scancel":
            subprocess.run(["scancel", *(jobs[step] for step in steps)], check=True)
        else:
            assert {maskgit("cancel", f"quickstart/{step}").returncode for step in steps} == {0}
        cluster.idle(400)
        time.sleep(1)
        assert not cluster.live(), "nothing restarts"
        states = {name: row["state"] for name, row in rows(store).items()}
        cancelled += sum(states[step] in ("stopped", "cancelled", "killed") for step in steps)
        assert set(states.values()) <= {"done", "stopped", "cancelled", "killed", "blocked"}, states
    assert cancelled >= 6, "most were cancelled before they were done"
    on_slurm(*TINY)
    cluster.idle(400)
    found, expected = digests(store), undisturbed(*TINY)
    report = read_json(step_folder(store, "report") / "manifest.json")["fingerprint"]
    assert {found.pop(report), expected.pop(report)} and found == expected, "all but the report, which shows speeds"


def test_a_sweep_of_training_settings(cluster, store: Path, on_slurm: Run, tmp_path: Path) -> None:
    """3 x 2 settings through train, sample and evaluate; one of them diverges and stops only its own chain."""
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "six.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart, _self_]\n"
        "pipeline: {steps: {eval_tokenizer: null, sample_untrained: null, evaluate: null, report: null, "
        "score: {stage: evaluate, needs: {generated: sample, reference: reference_statistics}}}}\n"
        "sweep:\n  list:\n"
        + "".join(
            f"    - {{train.lr: {lr}, train.seed: {seed}}}\n"
            for lr, seed in ((1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1), (4e-3, 0), (1e30, 1))
        )
    )
    tiny = [o.replace("evaluate.", "score.") for o in TINY[1:] if not o.startswith("eval_tokenizer")]
    asked = ["experiment=six", *tiny, "train.log_every=1", "train.warmup_steps=0", "--config-dir", str(conf)]
    jobs = jobs_in(on_slurm(*asked).stdout)
    assert len(jobs) == 3 + 6 * 3
    for stage in ("train", "sample", "score"):
        assert len({job.partition("_")[0] for name, job in jobs.items() if name.startswith(f"{stage}[")}) == 1
    cluster.idle(900)
    states = [str(row["state"]) for row in rows(store).values()]
    assert sorted(set(states)) == ["blocked", "done", "failed"], rows(store)
    assert (states.count("failed"), states.count("blocked"), states.count("done")) == (1, 2, 18)
    assert set(attempts_of(store).values()) == {1}
    again = jobs_in(on_slurm(*asked).stdout)
    assert len(again) == 3 and {name.partition("[")[0] for name in again} == {"train", "sample", "score"}
    cluster.idle(400)


def test_a_requeued_step_stays_one_run(cluster, store: Path, on_slurm: Run, maskgit: Run) -> None:
    jobs = jobs_in(on_slurm("experiment=chain", "numbers.count=120", "numbers.pause_s=0.5").stdout)
    folder = step_folder(store, "numbers")
    wait_until(lambda: len(list((folder / "parts").glob("*.json"))) >= 3)
    assert maskgit("sync").returncode == 0
    subprocess.run(["scancel", "--signal=USR2", jobs["numbers"]], check=True)
    wait_until(lambda: len(list((folder / "attempts").iterdir())) == 2)
    assert maskgit("sync").returncode == 0
    cluster.idle()
    assert maskgit("sync").returncode == 0

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.stage = 'numbers'")
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    points = client.get_metric_history(runs[0].info.run_id, "value")
    assert [p.step for p in sorted(points, key=lambda p: (p.timestamp, p.step))] == list(range(120))
