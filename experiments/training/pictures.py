"""Pictures of a training: a grid of samples every k steps, of the same seeds, so that one sees the model learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from experiments.running.binding import stage_arguments
from experiments.running.components import load_tokenizer
from experiments.store.paths import StepFolder
from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.images.pixels import picture_grid, to_uint8, to_unit
from maskgit_core.samplers.confidence import Sampler
from maskgit_core.shards.reader import TokenShards
from maskgit_core.token_groups import joined_tokens, sampling_grid
from maskgit_core.training.checkpoints import checkpoint_name

ROWS, COLUMNS, MAX_STEPS = 10, 8, 12


class SampleGrids:
    """Draws grids of samples: a row per class, eight columns, seeds 0, 1, 2, ...

    Args:
        tokenizer: network with `decode`.
        grid: (h, w) of the tokens.
        classes: of the rows; None: the first ten.
        guidance_scale: 1 for none.
    """

    def __init__(
        self,
        attempt: Attempt,
        tokenizer: Any,
        grid: tuple[int, int],
        classes: list[int] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        self.attempt, self.grid, self.classes, self.guidance_scale = attempt, grid, classes, guidance_scale
        self._tokenizer = load_tokenizer(tokenizer, attempt.device) if not hasattr(tokenizer, "decode") else tokenizer
        self._folder = attempt.parts / "samples"

    @torch.no_grad()
    def draw(self, model: Any, step: int) -> Path:
        """A PNG of the model's samples after `step` steps; published whole, so a resume finds the earlier ones."""
        from PIL import Image

        classes = self.classes or list(range(min(model.num_classes or ROWS, ROWS)))
        numbers = torch.arange(len(classes) * COLUMNS)
        rows = torch.tensor(classes)[numbers // COLUMNS]
        labels = None if model.num_classes is None else rows.to(self.attempt.device)
        sampler = Sampler(num_steps=min(MAX_STEPS, model.num_tokens), guidance_scale=self.guidance_scale)
        seeds = rng.sample_seeds(0, numbers).to(self.attempt.device)
        was_training = model.training
        model.eval()
        drawn_NL = sampler.sample(model, labels, grid=sampling_grid(model, self.grid), seeds_B=seeds)
        tokens_NL = joined_tokens(model, drawn_NL)
        model.train(was_training)
        images_NCHW = to_uint8(to_unit(self._tokenizer.decode(tokens_NL.unflatten(1, self.grid)))).cpu()
        picture = picture_of(images_NCHW)
        path = self._folder / Path(checkpoint_name(step)).with_suffix(".png").name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
        self.attempt.publish(path, lambda temporary: image.save(temporary, format="png"))
        return path

    def publish(self) -> None:
        """Puts all grids among the step's outputs, shown in MLflow."""
        for path in sorted(self._folder.glob("step-*.png")) if self._folder.is_dir() else []:
            target = self.attempt.files / "samples" / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
            self.attempt.show(target)


def picture_of(images_NCHW: Tensor) -> Any:
    """Rows of eight pictures, small ones enlarged: uint8 HWC."""
    rows = [list(row) for row in images_NCHW.split(COLUMNS)]
    return picture_grid(rows, scale=max(1, 56 // images_NCHW.shape[-1]))


def write_decoded(shards: TokenShards, count: int, tokenizer_folder: Path | None, path: Path) -> None:
    """Decodes the first `count` samples and writes them as one PNG: a column a sample, a row a variant.

    Args:
        tokenizer_folder: folder of the `train_tokenizer` step that made the tokenizer; None: found through the cache's
            own step folder.

    Raises:
        ConfigError: the tokenizer cannot be found.
    """
    import numpy as np
    import torch
    from PIL import Image

    tokenizer = load_tokenizer(_tokenizer(shards, tokenizer_folder))
    indices = np.arange(min(count, len(shards)))
    rows = []
    for variant in range(shards.num_variants):
        tokens = torch.from_numpy(shards.gather(indices, variant)[0]).view(-1, *shards.grid)
        with torch.inference_mode():
            images = torch.cat([tokenizer.decode(part) for part in tokens.split(16)])
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows.append(np.concatenate(list(pixels), axis=1))
    picture = np.concatenate(rows, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path)


def _tokenizer(shards: TokenShards, folder: Path | None) -> Any:
    if folder is not None:
        return Input(name="tokenizer", kind="tokenizer", folder=folder, fingerprint="", facts={}, config={})
    for step in (shards.folder.parent, shards.folder.parent.parent.parent):  # `files` is a link, or resolved
        if StepFolder(step).request.is_file():
            return stage_arguments(step.absolute())["tokenizer"]
    raise ConfigError(
        f"--tokenizer: {shards.folder} does not lie in a step's folder, so its tokenizer is not known; "
        "give the folder of the train_tokenizer step that made it"
    )
