"""Checkpoints scored while their training still runs, and that training branched and extended: in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from experiments.store.kept import kept_steps
from maskgit_core.files import read_json

SMALL = [
    "launcher=inline",
    "tracking.ship=false",
    "train_tokenizer.num_train_steps=8",
    "train_tokenizer.num_held_out=20",
    "reference_statistics.num_images=40",
    "eval_tokenizer.num_images=40",
    "train.batch_size=16",
    "train.warmup_steps=2",
    "train.checkpoint_every=10000",
    "train.keep_every=4",
    "sampler.num_steps=4",
    "sample.num_samples=20",
    "evaluate.num_images=20",
    "evaluate.classifier_steps=0",
]
SCORING = ["experiment=score_checkpoints", *SMALL, "pipeline.steps.train=null", "pipeline.steps.cache_tokens=null"]


def maskgit(store: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.cli", "run", *arguments, f"paths.store={store}"]


def run(store: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(maskgit(store, *arguments), capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(store: Path, experiment: str, pattern: str) -> list[dict[str, Any]]:
    found = [read_json(p / "manifest.json") for p in sorted((store / "experiments" / experiment).glob(pattern))]
    assert all(found)
    return found  # type: ignore[return-value]


@pytest.mark.slow
def test_checkpoints_are_scored_while_the_training_runs_and_a_run_goes_on_from_one(store: Path) -> None:
    endless = ["experiment=quickstart", *SMALL, "train.num_train_steps=100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    training = subprocess.Popen(maskgit(store, *endless), env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not any(len(kept_steps(folder)) >= 2 for folder in store.glob("train/*")):
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        text = run(store, *SCORING, "sample.model=quickstart/train@4,quickstart/train@8")
        assert training.poll() is None and "train started" not in text, "scored beside the running training"
    finally:
        training.send_signal(signal.SIGTERM)
        training.wait(300)
    scores = finished(store, "score_checkpoints", "evaluate-*")
    assert len(scores) == 2 and len({manifest["headline"]["value"] for manifest in scores}) == 2
    folder = next(store.glob("train/*"))
    assert not (folder / "manifest.json").exists() and kept_steps(folder)[:2] == [4, 8]
    branch = ["train.continue_from=train@8", "train.num_train_steps=12", "pipeline.steps.report=null"]
    run(store, "experiment=quickstart", *SMALL, *branch)
    (model,) = finished(store, "quickstart", "train")
    assert model["facts"]["num_train_steps"] == 12
    text = run(store, "experiment=quickstart", *SMALL, *branch)
    assert "nothing to do" in text, "the same request is the same training"
    longer = [f"train.continue_from={(store / 'experiments/quickstart/train').resolve().name}@12"]
    run(store, "experiment=quickstart", *SMALL, *longer, "train.num_train_steps=14", "pipeline.steps.report=null")
    assert finished(store, "quickstart", "train")[0]["facts"]["num_train_steps"] == 14
