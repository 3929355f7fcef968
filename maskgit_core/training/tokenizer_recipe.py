"""The recipe of a tokenizer's training; the fields are config keys of the `train_tokenizer` stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Neutral, Range
from maskgit_core.layers.discriminator import Norm, smallest_image
from maskgit_core.refusals import check_crop, check_parts
from maskgit_core.training.perceptual import Perceptual

Positive = Annotated[int, Range(1, 10_000_000)]
Weight = Annotated[float, Range(0, 1000)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Recipe:
    """The settings that decide the result of a tokenizer's training.

    Args:
        num_train_steps: optimizer steps.
        batch_size: images a step, over all processes.
        lr: highest learning rate, reached after `warmup_steps`.
        optimizer: `adamw`, or `muon` (Jordan et al. 2024), which is AdamW but for the kernels between the first and
            the last of the encoder and of the decoder; see `training/muon.py`.
        lr_schedule: `cosine` falls to 0 at the last step; `constant` stays.
        betas: AdamW's and the discriminator's Adam's.
        weight_decay: AdamW's, on all weights of the tokenizer.
        continuous_share: share of the steps in which there is no codebook yet; it is found by k-means afterwards.
        commitment_weight: of the squared distance between latents and their codes.
        l1_weight, l2_weight, edge_weight: of the mean absolute and squared error, and of the absolute error of
            neighbouring pixels' differences (crisper edges).
        perceptual, perceptual_weight: a fixed network whose features are to agree; see `training/perceptual.py`.
        disc_weight: of the adversarial loss; 0 trains no discriminator.
        disc_start: step from which the discriminator learns and the adversarial loss counts.
        adaptive_weight: the adversarial loss is scaled to the reconstruction's gradient at the last layer (VQGAN).
        disc_lr: the discriminator's learning rate; null: `lr`.
        disc_width, disc_layers, disc_norm: of the discriminator; see `layers/discriminator.py`.
        lecam_weight: of LeCam's regulariser of the discriminator.
        codebook_update: `ema`: codes follow their latents by `codebook_decay`; `gradient`: they are trained by the
            squared distance to them.
        codebook_decay: of the moving average by which codes follow their latents.
        revive_every: steps between moving unused codes onto latents in use; 0: never; with `ema`.
        entropy_weight, entropy_temperature: of LFQ's loss: entropy of a latent's code less that of the mean code.
        ema_decay: of a moving average of the weights, which is then what is published; null: none.
        grad_clip: largest gradient norm, of the tokenizer and of the discriminator each.
        flip: mirror half of the images left to right.
        crop_size: side of a random square cut from each image; null: the whole image.
        accumulate: parts that a batch is put through in; the adaptive weight is each part's own.
        precision: of the forward passes (autocast); weights, moments, codes and losses stay fp32.
        seed: of initial weights, order, flips, crops, k-means and revival.
    """

    num_train_steps: Positive = 20_000
    batch_size: Positive = 64
    lr: Annotated[float, Range(0, 1, low_open=True)] = 1e-3
    warmup_steps: Annotated[int, Range(0, 1_000_000)] = 100
    continuous_share: Share = 0.15
    commitment_weight: Weight = 0.25
    edge_weight: Weight = 0.5
    codebook_decay: Share = 0.98
    revive_every: Annotated[int, Range(0, 1_000_000)] = 20
    flip: bool = False
    seed: int = 0
    lr_schedule: Annotated[Literal["cosine", "constant"], Neutral("cosine")] = "cosine"
    optimizer: Annotated[Literal["adamw", "muon"], Neutral("adamw")] = "adamw"
    betas: Annotated[tuple[float, float], Range(0.0, 1.0, high_open=True), Neutral((0.9, 0.99))] = (0.9, 0.99)
    weight_decay: Annotated[float, Range(0), Neutral(1e-4)] = 1e-4
    l1_weight: Annotated[float, Range(0, 1000), Neutral(1.0)] = 1.0
    l2_weight: Annotated[float, Range(0, 1000), Neutral(0.0)] = 0.0
    perceptual: Annotated[Perceptual, Neutral("none")] = "none"
    perceptual_weight: Annotated[float, Range(0, 1000), Neutral(1.0)] = 1.0
    disc_weight: Annotated[float, Range(0, 1000), Neutral(0.0)] = 0.0
    disc_start: Annotated[int, Range(0), Neutral(0)] = 0
    adaptive_weight: Annotated[bool, Neutral(True)] = True
    disc_lr: Annotated[float | None, Range(0, 1, low_open=True), Neutral(None)] = None
    disc_width: Annotated[int, Range(8, 1024), Neutral(64)] = 64
    disc_layers: Annotated[int, Range(1, 6), Neutral(3)] = 3
    disc_norm: Annotated[Norm, Neutral("group")] = "group"
    lecam_weight: Annotated[float, Range(0, 1000), Neutral(0.0)] = 0.0
    codebook_update: Annotated[Literal["ema", "gradient"], Neutral("ema")] = "ema"
    entropy_weight: Annotated[float, Range(0, 1000), Neutral(0.1)] = 0.1
    entropy_temperature: Annotated[float, Range(0, 1000, low_open=True), Neutral(1.0)] = 1.0
    ema_decay: Annotated[float | None, Range(0, 1, high_open=True), Neutral(None)] = None
    grad_clip: Annotated[float, Range(0, low_open=True), Neutral(1.0)] = 1.0
    crop_size: Annotated[int | None, Range(8, 4096), Neutral(None)] = None
    accumulate: Annotated[int, Range(1, 1024), Neutral(1)] = 1
    precision: Annotated[Literal["fp32", "bf16"], Neutral("fp32")] = "fp32"

    @property
    def continuous_steps(self) -> int:
        """The first steps, in which there is no codebook; at least one step has one."""
        return min(round(self.continuous_share * self.num_train_steps), self.num_train_steps - 1)

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        if self.lr_schedule == "constant":
            return self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.lr * learning_rate_factor(step, self.warmup_steps, self.num_train_steps)


def check_recipe(recipe: Recipe, processes: int, image_size: int, downsample_factor: int) -> None:
    """Refuses values that do not go together.

    Args:
        recipe: what is asked.
        processes: that the training is divided over.
        image_size: side of the dataset's images.
        downsample_factor: of the tokenizer.

    Raises:
        ConfigError: names the key, what was found and what to set.
    """
    check_parts(recipe.batch_size, processes, recipe.accumulate)
    check_crop(recipe.crop_size, image_size, downsample_factor)
    if recipe.disc_norm == "batch" and processes > 1:
        raise ConfigError(
            "train_tokenizer.disc_norm: found batch with several processes, whose batches would be normalised apart; "
            "use group or none"
        )
    side, smallest = recipe.crop_size or image_size, smallest_image(recipe.disc_layers)
    if recipe.disc_weight and side < smallest:
        raise ConfigError(
            f"train_tokenizer.disc_layers: found {recipe.disc_layers}, whose discriminator needs images of at least "
            f"{smallest} pixels; these have {side}; set it lower, or disc_weight=0"
        )
    if not (recipe.l1_weight or recipe.l2_weight):
        raise ConfigError("train_tokenizer.l1_weight: found 0 with l2_weight 0; one of the two must be above 0")


def learning_rate_factor(step: int, warmup_steps: int, num_train_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at `num_train_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_train_steps - warmup_steps)))
