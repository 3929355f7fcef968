"""A tokenizer's training with a discriminator, killed at random steps, ends with the weights of an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_calls import call

from experiments.config.specs import DatasetSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.stages import train_tokenizer
from maskgit_core.training.tokenizer import Trainer

SPEC = TokenizerSpec("vq", {"codebook_size": 8, "code_dim": 4, "width": 8})
VALUES = {"num_train_steps": 40, "batch_size": 4, "disc_weight": 0.5, "disc_start": 15, "disc_width": 8,
          "disc_layers": 1, "ema_decay": 0.9, "flip": True, "crop_size": 12, "checkpoint_every": 2,
          "revive_every": 3}  # fmt: skip


#: What is switched on in the drill at any moment: each loss, quantizer and optimizer in one of the trainings.
SWITCHES = {
    "vq": ({}, {"optimizer": "muon", "perceptual": "efficientnet_lite1"}),
    "gradient": ({"normalised": True}, {"codebook_update": "gradient", "accumulate": 2, "lecam_weight": 0.1}),
    "lfq": ({"quantizer": "lfq"}, {"precision": "bf16"}),
    "fsq": ({"quantizer": "fsq", "fsq_levels": [4, 2]}, {"optimizer": "muon", "adaptive_weight": False}),
}


def forked(folder: Path, number: int, pictures: DatasetSpec, kill_at: int | None, switches: str = "") -> int:
    """The process id of one attempt in a process of its own, which kills itself before step `kill_at`."""
    child = os.fork()
    if child:
        return child
    try:
        os.nice(8)  # on a busy machine it would reach its end before whoever kills it has looked
        torch.set_num_threads(1)
        original = Trainer.train_step

        def watched(self: Trainer, images: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, images)

        Trainer.train_step = watched  # type: ignore[method-assign]
        options, values = SWITCHES[switches] if switches else ({}, {})
        if switches:  # long enough for twenty attempts that each get somewhere
            values = values | {"num_train_steps": 100, "disc_start": 30}
        spec = TokenizerSpec("vq", {**SPEC.options, **options})
        call(train_tokenizer, Attempt(folder, number), dataset=pictures, tokenizer=spec, **(VALUES | values))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def in_a_child(folder: Path, number: int, pictures: DatasetSpec, kill_at: int | None, switches: str = "") -> int:
    """The exit code of that process."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(folder, number, pictures, kill_at, switches), 0)[1])


@pytest.fixture
def pictures(tmp_path: Path) -> DatasetSpec:
    draws = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(24):
        pixels = draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02d}.png")
    return DatasetSpec("image_folder", {"root": str(tmp_path / "pictures"), "image_size": 16})


def newest_step(folder: Path) -> int:
    """The training step of the newest checkpoint of all attempts; 0 where there is none."""
    steps = [0]
    with contextlib.suppress(FileNotFoundError):  # an attempt has just deleted those before it
        for path in folder.glob("attempts/*/checkpoints/trainer.pt"):
            steps.append(int(torch.load(path, weights_only=True)["step"]))
    return max(steps)


def assert_equal(tmp_path: Path, attempts: int) -> None:
    whole = tmp_path / "whole" / "attempts" / "0001" / "files"
    cut = tmp_path / "cut" / "attempts" / f"{attempts:04d}" / "files"
    for name in ("weights.safetensors", "reconstructions.png", "scores.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_steps_it_ends_with_the_same_weights(
    tmp_path: Path, pictures: DatasetSpec, kills: int
) -> None:
    assert in_a_child(tmp_path / "whole", 1, pictures, None) == 0
    steps = sorted(random.Random(kills).sample(range(1, 40), kills))
    for number, step in enumerate(steps, 1):
        assert in_a_child(tmp_path / "cut", number, pictures, step) == -signal.SIGKILL
    assert in_a_child(tmp_path / "cut", kills + 1, pictures, None) == 0
    assert_equal(tmp_path, kills + 1)


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES)
def test_killed_at_any_moment_it_ends_with_the_same_weights(
    tmp_path: Path, pictures: DatasetSpec, switches: str
) -> None:
    """SIGKILL from outside: every fourth while the process begins, the others a while after a checkpoint."""
    assert in_a_child(tmp_path / "whole", 1, pictures, None, switches) == 0
    draws, reached, kills = random.Random(switches), 0, 20
    for number in range(1, kills + 1):
        child = forked(tmp_path / "cut", number, pictures, None, switches)
        wanted = 0 if number % 4 == 0 else reached + draws.randrange(1, 7)
        while (newest := newest_step(tmp_path / "cut")) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(draws.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        reached = max(reached, newest)
        print(f"{switches}: kill {number}, newest checkpoint at step {newest} of 100", flush=True)
    assert in_a_child(tmp_path / "cut", kills + 1, pictures, None, switches) == 0
    assert_equal(tmp_path, kills + 1)
