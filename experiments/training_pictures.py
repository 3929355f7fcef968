"""Pictures of a training: a grid of samples every k steps, of the same seeds, so that one sees the model learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.attempt import Attempt
from experiments.binding import arguments, load_inputs, read_request
from experiments.components import load_tokenizer
from experiments.schema import Input
from maskgit_core import rng
from maskgit_core.checkpoints import checkpoint_name
from maskgit_core.errors import ArtifactError, ConfigError
from maskgit_core.pixels import picture_grid, to_uint8, to_unit
from maskgit_core.samplers.confidence import Sampler

ROWS, COLUMNS, MAX_STEPS = 10, 8, 12


def tokenizer_behind(tokens: Input) -> Any:
    """The tokenizer that a cache was made with, as `cache_tokens` was given it: an artifact, or a published one's spec.

    Raises:
        ConfigError: the cache was not made by a step of this store.
    """
    try:
        request, launch = read_request(tokens.folder)
        inputs = load_inputs(tokens.folder.parent.parent, request, launch)
        return arguments(request, launch, inputs)["tokenizer"]
    except (ArtifactError, KeyError):
        raise ConfigError(
            f"train.samples_every: no tokenizer is known behind {tokens.folder} that could draw; set it to 0"
        ) from None


class SampleGrids:
    """Draws grids of samples: a row a class (at most ten), eight columns, no guidance, seeds 0, 1, 2, ...

    Args:
        tokenizer: network with `decode`.
        grid: (h, w) of the tokens.
    """

    def __init__(self, attempt: Attempt, tokenizer: Any, grid: tuple[int, int]) -> None:
        self.attempt, self.grid = attempt, grid
        self._tokenizer = load_tokenizer(tokenizer, attempt.device) if not hasattr(tokenizer, "decode") else tokenizer
        self._folder = attempt.parts / "samples"

    @torch.no_grad()
    def draw(self, model: Any, step: int) -> Path:
        """A PNG of the model's samples after `step` steps; published whole, so a resume finds the earlier ones."""
        from PIL import Image

        rows = min(model.num_classes or ROWS, ROWS)
        numbers = torch.arange(rows * COLUMNS)
        labels = None if model.num_classes is None else (numbers // COLUMNS).to(self.attempt.device)
        sampler = Sampler(num_steps=min(MAX_STEPS, model.num_tokens))
        seeds = rng.sample_seeds(0, numbers).to(self.attempt.device)
        was_training = model.training
        model.eval()
        tokens_NL = sampler.sample(model, labels, grid=self.grid, seeds_B=seeds)
        model.train(was_training)
        images_NCHW = to_uint8(to_unit(self._tokenizer.decode(tokens_NL.unflatten(1, self.grid)))).cpu()
        picture = picture_of(images_NCHW)
        path = self._folder / Path(checkpoint_name(step)).with_suffix(".png").name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
        self.attempt.publish(path, lambda temporary: image.save(temporary, format="png"))
        return path

    def publish(self) -> None:
        """Puts all grids among the step's outputs, shown in the tracking window."""
        for path in sorted(self._folder.glob("step-*.png")) if self._folder.is_dir() else []:
            target = self.attempt.files / "samples" / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
            self.attempt.show(target)


def picture_of(images_NCHW: Tensor) -> Any:
    """Rows of eight pictures, small ones enlarged: uint8 HWC."""
    rows = [list(row) for row in images_NCHW.split(COLUMNS)]
    return picture_grid(rows, scale=max(1, 56 // images_NCHW.shape[-1]))
