"""A tokenizer's training with a discriminator, killed at random steps, ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
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


def in_a_child(folder: Path, number: int, pictures: DatasetSpec, kill_at: int | None) -> int:
    """The exit code of one attempt in a process of its own, which kills itself before step `kill_at`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        torch.set_num_threads(1)
        original = Trainer.train_step

        def watched(self: Trainer, images: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, images)

        Trainer.train_step = watched  # type: ignore[method-assign]
        call(train_tokenizer, Attempt(folder, number), dataset=pictures, tokenizer=SPEC, **VALUES)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_it_ends_with_the_same_weights(tmp_path: Path, kills: int) -> None:
    draws = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(24):
        Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / "pictures" / f"{i:02d}.png"
        )
    pictures = DatasetSpec("image_folder", {"root": str(tmp_path / "pictures"), "image_size": 16})
    assert in_a_child(tmp_path / "whole", 1, pictures, None) == 0
    steps = sorted(random.Random(kills).sample(range(1, 40), kills))
    for number, step in enumerate(steps, 1):
        assert in_a_child(tmp_path / "cut", number, pictures, step) == -signal.SIGKILL
    assert in_a_child(tmp_path / "cut", kills + 1, pictures, None) == 0
    whole = tmp_path / "whole" / "attempts" / "0001" / "files"
    cut = tmp_path / "cut" / "attempts" / f"{kills + 1:04d}" / "files"
    for name in ("weights.safetensors", "reconstructions.png", "scores.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
