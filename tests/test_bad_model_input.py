"""Requests that no model can meet, through the real command: one line, exit code 2, and nothing was made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from small_fashion import write_small_fashion
from test_bad_input import refused

from maskgit_core.models.prenorm import Model
from maskgit_core.training.checkpoints import save_tensors

SIZE = {"dim": 16, "num_layers": 1, "num_heads": 2}
EXPERIMENT = """\
# @package _global_
# A model made elsewhere, sampled with a tokenizer trained here.
defaults:
  - /dataset: fashion_mnist
  - /tokenizer: vq
  - /model: prenorm
  - /sampler: confidence
  - _self_
description: an imported model
pipeline:
  steps:
    train_tokenizer: {stage: train_tokenizer}
    import_model: {stage: import_model}
    cache_tokens: {stage: cache_tokens, needs: [train_tokenizer]}
    train: {stage: train, needs: [cache_tokens]}
    sample: {stage: sample, needs: [import_model, train_tokenizer]}
train_tokenizer: {num_train_steps: 4, batch_size: 4, num_held_out: 4}
tokenizer: {codebook_size: 32, width: 8, code_dim: 4}
model: {dim: 16, num_layers: 1, num_heads: 2}
import_model: {codebook_size: 32, grid_height: 7, grid_width: 7, num_classes: 10}
train: {num_train_steps: 2, warmup_steps: 0}
sample: {num_samples: 4}
sampler: {num_steps: 3}
"""


def write_model(path: Path, **facts: int | None) -> Path:
    torch.manual_seed(0)
    known = {"codebook_size": 32, "num_tokens": 49, "num_classes": 10, **facts}
    save_tensors(path, Model(**{**known, **SIZE}).state_dict(), {})  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its tokenizer trained and its tokens cached."""
    place = tmp_path_factory.mktemp("place")
    (place / "mine" / "experiment").mkdir(parents=True)
    (place / "mine" / "experiment" / "imported.yaml").write_text(EXPERIMENT)
    write_small_fashion(place / "data", 24, 8)
    write_model(place / "model.safetensors")
    done = run(place, "pipeline.steps.train=null", "pipeline.steps.import_model=null", "pipeline.steps.sample=null")
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def run(place: Path, *arguments: str, launcher: str = "local") -> subprocess.CompletedProcess[str]:
    asked = [f"dataset.root={place / 'data'}", f"import_model.weights={place / 'model.safetensors'}", *arguments]
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", "experiment=imported", f"launcher={launcher}",
         "tracking.ship=false", *asked, "--config-dir", str(place / "mine")],
        capture_output=True, text=True, timeout=500, cwd=place,
        env={**os.environ, "MASKGIT_STORE": str(place / "store"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "arguments", "said"),
    [
        ({"codebook_size": 64}, [], "token_emb.weight has shape [65, 16] but the model wants [33, 16]"),
        (
            {"codebook_size": 16},
            ["import_model.codebook_size=16"],
            "codebook has 32 entries but the model draws",
        ),
        ({}, ["sample.classes=[3,10]"], "sample.classes: 10 is out of range; the model knows classes 0 to 9"),
        (
            {"num_classes": None},
            ["import_model.num_classes=null", "sampler.guidance_scale=2"],
            "sampler.guidance_scale: 2.0 with an unconditional model",
        ),
        ({}, ["sampler.num_steps=50"], "sampler.num_steps: 50 steps for 49 tokens"),
    ],
    ids=["another model", "larger codebook", "class", "unconditional", "steps"],
)
def test_sampling(place: Path, tmp_path: Path, facts: dict[str, int | None], arguments: list[str], said: str) -> None:
    path = write_model(tmp_path / "model.safetensors", **facts)
    refused(run(place, "pipeline.steps.train=null", *arguments, f"import_model.weights={path}"), said)
    assert not list(place.glob("store/sample/*/attempts/*/files/*")), "nothing was drawn"


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared(place: Path) -> None:
    asked = ["pipeline.steps.import_model=null", "pipeline.steps.sample=null", "train.batch_size=9"]
    done = run(place, *asked, "resources.train.ranks=2")
    refused(done, "train.batch_size: 9 samples cannot be shared evenly by 2 processes; give 8 or 10")
    assert not list(place.glob("store/train/*"))
