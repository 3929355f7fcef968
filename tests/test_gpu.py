"""What must hold on a GPU (marked `gpu`; needs a card), and the program that measures one, run dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from maskgit_core import rng
from maskgit_core.models.prenorm import Model
from maskgit_core.samplers.confidence import Sampler
from maskgit_core.training.trainer import Trainer
from tools.gpu.__main__ import SECTIONS
from tools.gpu.rig import Rig
from tools.gpu.training import batches, recipe, resume, steps

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
SLOW_WHEN_DRY = {"features", "precision", "encode", "decode", "ranks", "tests"}


def dry(*names: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu", *names, "--dry"],
        cwd=ROOT, capture_output=True, text=True, timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([n for n in SECTIONS if n not in SLOW_WHEN_DRY], id="quick"),
        pytest.param(sorted(SLOW_WHEN_DRY), id="others", marks=pytest.mark.slow),
    ],
)
def test_every_section_works_dry(names):
    lines = dry(*names)
    assert lines[0]["section"] == "machine" and lines[0]["dry"] and lines[0]["torch"]
    assert {line["section"] for line in lines[1:]} == set(names)
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    assert all(line["value"] == 0 for line in lines if line.get("name") == "resume_difference")
    assert not [line for line in lines if "reached" in line], "a dry run checks no goal"


@pytest.fixture
def rig():
    return Rig("cuda:0", is_dry=True)


@pytest.mark.gpu
@gpu[1]
def test_a_resume_goes_on_as_if_nothing_had_been(rig):
    assert all(line["value"] == 0 for line in resume(rig))


@pytest.mark.gpu
@gpu[1]
def test_a_step_in_fp32_gives_the_weights_of_a_cpu(rig):
    weights = {}
    for device in ("cpu", "cuda:0"):
        trainer = Trainer(rig.model(), recipe(4, "fp32"), device)
        ready = steps(trainer, batches(rig, 4))
        for _ in range(2):
            trainer.train_step(next(ready))
        weights[device] = {name: p.detach().cpu() for name, p in trainer.parameters.items()}
    for name, value in weights["cpu"].items():
        assert torch.allclose(value, weights["cuda:0"][name], atol=1e-5), name


@pytest.mark.gpu
@gpu[1]
@torch.no_grad()
def test_tokens_do_not_depend_on_the_batch_and_nearly_not_on_the_device():
    torch.manual_seed(0)
    model = Model(codebook_size=32, num_tokens=16, num_classes=4, dim=32, num_layers=2, num_heads=2).eval()
    sampler = Sampler(num_steps=4, guidance_scale=2.0)
    numbers = torch.arange(8)
    seeds, labels = rng.sample_seeds(0, numbers), numbers % 4
    on_cpu = sampler.sample(model, labels, grid=(4, 4), seeds_B=seeds)
    model.cuda()
    whole = sampler.sample(model, labels.cuda(), grid=(4, 4), seeds_B=seeds.cuda()).cpu()
    assert (whole != on_cpu).float().mean() < 0.05
