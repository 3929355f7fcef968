"""What must hold on a GPU (marked `gpu`; needs a card), and the program that measures one, run dry."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from conftest import ROOT

from maskgit_core import rng
from maskgit_core.models.prenorm import Model
from maskgit_core.samplers.confidence import Sampler
from maskgit_core.training.trainer import Trainer
from tools.gpu import page, training
from tools.gpu.__main__ import SECTIONS, figures, parsed
from tools.gpu.rig import Rig
from tools.gpu.training import batches, recipe, resume, steps

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def test_every_section_works_dry():
    lines = list(figures(list(SECTIONS), Rig("cpu", is_dry=True)))
    assert lines[0]["section"] == "machine" and lines[0]["dry"] and lines[0]["torch"]
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    measured = {line["section"] for line in lines[1:] if line["name"] != "seconds"}
    assert measured == set(SECTIONS), "every section gives a figure"
    assert all(math.isfinite(line["value"]) and line["unit"] for line in lines[1:])
    assert [json.loads(json.dumps(line)) for line in lines] == lines
    assert all(line["value"] == 0 for line in lines if line.get("name") == "resume_difference")
    assert next(line for line in lines if line.get("name") == "two_ranks")["loss_difference"] < 1e-5
    assert not [line for line in lines if "reached" in line], "a dry run checks no goal"


def test_a_section_that_breaks_says_so_and_the_next_goes_on(monkeypatch):
    def broken(rig):
        raise ValueError("no\nsuch kernel")
        yield

    monkeypatch.setitem(SECTIONS, "train", broken)
    lines = list(figures(["train", "wait"], Rig("cpu", is_dry=True)))
    assert [line.get("failed") for line in lines[1:3]] == ["ValueError: no such kernel", None]
    assert "data_wait_share" in [line.get("name") for line in lines]


def test_the_search_for_the_largest_batch_ends_where_memory_does(monkeypatch):
    def one_step(rig, batch):
        if batch > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch / 10

    monkeypatch.setattr(training, "_one_step", one_step)
    (line,) = training._largest_batch(Rig("cpu", is_dry=False))
    assert (line["value"], line["peak_gb"], line["ended_by"]) == (256, 25.6, "memory")


def test_a_rank_that_fails_is_named_and_nobody_waits_for_the_other(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"rank 0 of 2: no output"):
        training._launched(Rig("cpu", is_dry=True), 2)


def test_a_page_holds_goals_tables_and_lines_and_a_later_run_replaces_its_own_sections(tmp_path):
    machine = {"section": "machine", "device": "NVIDIA H100 80GB", "driver": "550.1", "commit": "abc", "dry": False}
    speed = {"section": "sample", "name": "guided_sampling", "value": 4.2, "unit": "times", "batch": 8}
    wait = {"section": "wait", "name": "data_wait_share", "value": 0.01, "unit": "share"}
    path = page.write([machine, {**speed, "goal": 3.0, "reached": True}, wait], tmp_path)
    assert path.name == "gpu_nvidia_h100_80gb.md"
    assert "| sample, guided_sampling, batch 8 | 3.0 | 4.2 | yes |" in path.read_text()
    page.write([{**machine, "commit": "def"}, {**wait, "value": 0.02}], tmp_path)
    text = path.read_text()
    assert "0.02" in text and "0.01" not in text, "the section is measured anew"
    assert "commit def" in text and "| guided_sampling | 4.2 | times | commit abc, batch 8 |" in text


def test_the_command_teaches_and_refuses(capsys):
    for arguments, told in (
        (["--help"], "train      (a)"),
        (["nap"], "no section nap"),
        (["--write", "--dry"], "dry run"),
    ):
        with pytest.raises(SystemExit) as ended:
            parsed(arguments)
        said = capsys.readouterr()
        assert told in said.out + said.err and ended.value.code == (0 if arguments == ["--help"] else 2)


@pytest.fixture
def rig():
    return Rig("cuda:0", is_dry=True)


@pytest.mark.gpu
@gpu[1]
def test_a_resume_goes_on_as_if_nothing_had_been(rig):
    lines = list(resume(rig))
    assert lines and all(line["value"] == 0 for line in lines if line["deterministic"])


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
