"""The stage `train_tokenizer`, stopped and continued, and what it leaves behind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from stage_calls import call

from experiments.config.specs import DatasetSpec, Input, TokenizerSpec
from experiments.running.attempt import Attempt, Stopped
from experiments.running.components import load_tokenizer
from experiments.running.signals import StopFlag
from experiments.stages import train_tokenizer
from experiments.store.journal import read_points
from maskgit_core.errors import ConfigError


class StopAfter(StopFlag):
    """Asks to stop once looked at `looks` times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def is_set(self):
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return DatasetSpec("image_folder", {"root": str(tmp_path / "pictures"), "image_size": 16})


TINY = TokenizerSpec("vq", {"codebook_size": 8, "code_dim": 4, "width": 8})
VALUES = {"num_train_steps": 20, "batch_size": 4, "warmup_steps": 2, "log_every": 5, "checkpoint_every": 6}


def run(folder, pictures, number=1, stop=None, **changed):
    attempt = Attempt(folder, number, stop=stop)
    call(train_tokenizer, attempt, dataset=pictures, tokenizer=TINY, **(VALUES | changed))
    attempt.close()
    return attempt


def test_artifact_can_be_loaded_and_is_what_was_trained(tmp_path, pictures):
    attempt = run(tmp_path / "step", pictures)
    assert {p.name for p in attempt.files.iterdir()} >= {"tokenizer.json", "weights.safetensors", "reconstructions.png"}
    assert attempt.notes.facts == {
        "codebook_size": 8, "downsample_factor": 4, "image_size": [16, 16], "in_channels": 3
    }  # fmt: skip
    (tmp_path / "step" / "files").symlink_to(attempt.files)
    upstream = Input("train_tokenizer", "tokenizer", tmp_path / "step", "f" * 64, attempt.notes.facts, {})
    tokenizer = load_tokenizer(upstream)
    tokens = tokenizer.encode(torch.zeros(1, 3, 16, 24))
    assert tokens.shape == (1, 4, 6) and tokenizer.decode(tokens).shape == (1, 3, 16, 24)
    assert json.loads((attempt.files / "scores.json").read_text())["held_out"]["psnr"] > 0
    assert any(name == "loss" and step == 20 for name, step, *_ in read_points(tmp_path / "step"))


def test_stopped_twice_equals_uninterrupted(tmp_path, pictures):
    whole = run(tmp_path / "whole", pictures)
    for number, looks in ((1, 7), (2, 4)):
        with pytest.raises(Stopped):
            run(tmp_path / "cut", pictures, number, stop=StopAfter(looks))
    cut = run(tmp_path / "cut", pictures, 3)
    for name in ("weights.safetensors", "tokenizer.json", "reconstructions.png", "scores.json"):
        assert (whole.files / name).read_bytes() == (cut.files / name).read_bytes(), name


def test_a_damaged_checkpoint_is_passed_over(tmp_path, pictures, capsys):
    whole = run(tmp_path / "whole", pictures)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", pictures, 1, stop=StopAfter(7))
    damaged = tmp_path / "cut" / "attempts" / "0001" / "checkpoints" / "trainer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    cut = run(tmp_path / "cut", pictures, 2)
    assert f"{damaged}: is no checkpoint" in capsys.readouterr().err
    assert (whole.files / "weights.safetensors").read_bytes() == (cut.files / "weights.safetensors").read_bytes()


def test_reading_ahead_and_logging_change_nothing(tmp_path, pictures):
    one = run(tmp_path / "one", pictures)
    two = run(tmp_path / "two", pictures, num_workers=2, log_every=3, checkpoint_every=1000)
    assert (one.files / "weights.safetensors").read_bytes() == (two.files / "weights.safetensors").read_bytes()


def test_a_batch_that_processes_cannot_divide_is_refused(tmp_path, pictures):
    attempt = Attempt(tmp_path / "step", 1, rank=0, world_size=2)
    with pytest.raises(ConfigError, match=r"^train_tokenizer\.batch_size: found 5; it is divided over 2"):
        call(train_tokenizer, attempt, dataset=pictures, tokenizer=TINY, **(VALUES | {"batch_size": 5}))


def test_a_vqgan_is_trained_drawn_and_exported(tmp_path, pictures):
    small = {"channels": 32, "multipliers": [1, 1, 1], "downsample_factor": 4, "num_blocks": 1, "z_channels": 8}
    values = {"num_train_steps": 4, "batch_size": 4, "disc_weight": 0.5, "disc_width": 8, "disc_layers": 1}
    for normalised, name in ((False, "taming.ckpt"), (True, "llamagen.pt")):
        spec = TokenizerSpec("vqgan", small | {"codebook_size": 8, "code_dim": 4, "normalised": normalised})
        attempt = Attempt(tmp_path / name)
        call(train_tokenizer, attempt, dataset=pictures, tokenizer=spec, export=True, pictures_every=2, log_every=1,
             **values)  # fmt: skip
        attempt.close()
        assert (attempt.files / "reconstructions" / "step-000000002.png").is_file()
        (tmp_path / name / "files").symlink_to(attempt.files)
        network = load_tokenizer(Input("t", "tokenizer", tmp_path / name, "f" * 64, attempt.notes.facts, {}))
        saved = torch.load(attempt.files / name, weights_only=True)
        tensors = saved["model" if normalised else "state_dict"]
        assert torch.equal(tensors["quantize.embedding.weight"], network.quantize.embedding.weight)
        points = {metric for metric, *_ in read_points(tmp_path / name)}
        assert {"psnr", "disc_accuracy", "grad_norm", "code_perplexity", "code_usage", "disc_grad_norm"} <= points


def test_only_a_vqgan_with_learnt_codes_is_exported(tmp_path, pictures):
    attempt = Attempt(tmp_path / "step")
    with pytest.raises(ConfigError, match=r"^train_tokenizer\.export: found true"):
        call(train_tokenizer, attempt, dataset=pictures, tokenizer=TINY, export=True, **VALUES)
