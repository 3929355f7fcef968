"""Every process computes on its own GPU: chosen by its rank, current in every thread, asked for by every stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from small_fashion import write_small_fashion

from experiments.running.attempt import Attempt
from maskgit_core import devices
from maskgit_core.batches.tokens import ahead
from maskgit_core.errors import ConfigError

TINY = [
    "experiment=quickstart",
    "launcher=inline",
    "tracking.ship=false",
    "train_tokenizer.num_train_steps=8",
    "train_tokenizer.batch_size=8",
    "train_tokenizer.num_held_out=8",
    "reference_statistics.num_images=20",
    "eval_tokenizer.num_images=20",
    "train.num_train_steps=4",
    "train.batch_size=8",
    "train.warmup_steps=2",
    "train.samples_every=4",
    "train.held_out_share=0.01",
    "train.peak_tflops=1.0",  # else products of a size that suits GPUs are timed
    "sample.num_samples=10",
    "sampler.num_steps=2",
    "evaluate.num_images=10",
    "evaluate.classifier_steps=2",
    "pipeline.steps.edit={stage: edit, needs: [train, train_tokenizer]}",
    "pipeline.steps.train_on_images={stage: train, needs: {image_tokenizer: train_tokenizer}}",
    "edit.num_images=2",
]


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count)` pretends to have that many; the returned list fills with (thread's own name, index)."""
    import threading

    made: list[tuple[str, int]] = []

    def pretend(count: int) -> list[tuple[str, int]]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda i: made.append((threading.current_thread().name, i)))
        return made

    yield pretend
    devices._bound = None


@pytest.mark.parametrize(
    ("count", "local_rank", "asked", "device"),
    [
        (4, "0", None, "cuda:0"),
        (4, "3", None, "cuda:3"),
        (1, "3", None, "cuda:0"),  # the site shows each task its own GPU alone
        (2, "5", None, "cuda:1"),  # more processes than GPUs share them
        (4, None, None, "cuda:0"),
        (4, "1", "cuda:2", "cuda:2"),
        (4, "3", "cuda", "cuda:3"),
        (4, "3", "cpu", "cpu"),
        (0, "3", None, "cpu"),
    ],
)
def test_the_device_is_that_of_the_local_rank(gpus, monkeypatch, tmp_path, count, local_rank, asked, device):
    made = gpus(count)
    for name, value in (("LOCAL_RANK", local_rank), ("MASKGIT_DEVICE", asked)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    attempt = Attempt(tmp_path)
    assert attempt.device == attempt.device == device
    assert made == ([] if device == "cpu" else [("MainThread", int(device[-1]))])
    attempt.close()


@pytest.mark.parametrize("asked", ["cuda:4", "gpu"])
def test_a_device_that_is_not_there_is_refused(gpus, monkeypatch, tmp_path, asked):
    gpus(2)
    monkeypatch.setenv("MASKGIT_DEVICE", asked)
    with pytest.raises(ConfigError, match=f"MASKGIT_DEVICE: found '?{asked}"):
        devices.bind_device()


def test_the_read_ahead_thread_uses_the_same_device(gpus, monkeypatch):
    made = gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    devices.bind_device()
    assert list(ahead(iter([1, 2]), 2)) == [1, 2]
    assert made == [("MainThread", 2), ("read-ahead", 2)]


def test_every_stage_asks_for_the_process_s_own_gpu_and_no_other(tmp_path):
    notes, script = tmp_path / "notes.json", ROOT / "tests" / "support" / "two_gpus.py"
    pictures = write_small_fashion(tmp_path / "pictures", 120, 40)
    data = [f"dataset.root={pictures}", f"train_on_images.images={{name: fashion_mnist, root: {pictures}}}"]
    done = subprocess.run(
        [sys.executable, str(script), str(notes), "run", *TINY, *data, f"paths.store={tmp_path / 'store'}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MASKGIT_DEVICE": "cuda:1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    seen = json.loads(notes.read_text())
    assert seen["asked"] == ["cuda:1"]
    assert seen["current"] == [["MainThread", "1"], ["read-ahead", "1"]]
    assert len(list((tmp_path / "store").glob("*/*/manifest.json"))) == 11
