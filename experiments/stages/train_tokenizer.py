"""Trains a small VQ tokenizer for a data set that has no published one.

What comes out stands in `tokenizer.json` (name, options, facts) and `weights.safetensors`; a picture shows held-out
images above their reconstructions. One process; killed anywhere, it goes on from its last checkpoint and gives the
same tokenizer, bit for bit on the CPU.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from experiments.config.specs import DatasetSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.running.components import describe
from maskgit_core.errors import ConfigError, DataError, WeightsError
from maskgit_core.files import write_json
from maskgit_core.hints import Execution, Range
from maskgit_core.images.pixels import picture_grid, stack, to_signed, to_uint8, to_unit
from maskgit_core.tokenizers import vq
from maskgit_core.training.checkpoints import save_tensors
from maskgit_core.training.tokenizer import Positive, Recipe, Trainer, TrainingImages, held_out_ids, held_out_scores

VERSION = 2
PRODUCES = "tokenizer"


def run(
    attempt: Attempt,
    *,
    dataset: DatasetSpec,
    tokenizer: TokenizerSpec,
    recipe: Recipe,
    num_held_out: Positive = 500,
    log_every: Execution[Positive] = 50,
    checkpoint_every: Execution[Positive] = 200,
    num_workers: Execution[Annotated[int, Range(0, 256)]] = 0,
) -> None:
    """Trains and writes the tokenizer.

    Args:
        dataset: images to train on; a few of them are held out to judge by.
        tokenizer: `vq` and its options.
        recipe: its fields are keys of this stage.
        num_held_out: images kept from training (at most a tenth).
        log_every, checkpoint_every: steps between journal points, and between checkpoints.
        num_workers: threads that read images ahead; 0 suits data sets that lie in memory.
    """
    images = _checked(attempt, dataset.build())
    train_ids, held_ids = held_out_ids(recipe.seed, len(images), num_held_out)
    facts = {"in_channels": int(images[0].image.shape[2])}
    network = _build(tokenizer, recipe.seed, facts).to(attempt.device)
    held_BCHW = to_signed(stack(images, held_ids.tolist())[0]).to(attempt.device)
    training = TrainingImages(images, train_ids, recipe, num_workers)
    _train(attempt, Trainer(network, recipe), training, held_BCHW, log_every, checkpoint_every)
    _write(attempt, tokenizer, network.eval(), facts, held_BCHW)


def _checked(attempt: Attempt, images: Any) -> Any:
    if attempt.world_size > 1:
        raise ConfigError(
            f"resources.train_tokenizer.ranks: found {attempt.world_size}; this stage runs in one process; set it to 1"
        )
    if len(images) < 2:
        raise DataError(f"dataset: found {len(images)} images; training a tokenizer needs at least 2")
    return images


def _build(spec: TokenizerSpec, seed: int, facts: dict[str, Any]) -> vq.Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build(**facts)
    if not isinstance(network, vq.Tokenizer):
        raise ConfigError(
            f"tokenizer.name: found {spec.name}; train_tokenizer trains [vq]; use it as it is, or take vq"
        )
    return network


def _train(
    attempt: Attempt,
    trainer: Trainer,
    training: TrainingImages,
    held_BCHW: torch.Tensor,
    log_every: int,
    checkpoint_every: int,
) -> None:
    recipe, own = trainer.recipe, attempt.checkpoints / "trainer.pt"
    _restore(attempt, trainer, own)
    progress = attempt.progress(recipe.num_train_steps, unit="step", label="training tokenizer")
    progress.start_at(trainer.step)
    since, seen = time.monotonic(), trainer.step
    for pixels_BCHW in training.since(trainer.step):
        losses = trainer.train_step(to_signed(pixels_BCHW.to(attempt.device)))
        progress.update()
        last = trainer.step == recipe.num_train_steps
        if trainer.step % log_every == 0 or last:
            now = time.monotonic()
            rate = (trainer.step - seen) * recipe.batch_size / max(now - since, 1e-9)
            since, seen = now, trainer.step
            point = {name: float(value) for name, value in losses.items()}
            attempt.log({**point, "lr": trainer.optimizer.param_groups[0]["lr"], "images_per_s": rate}, trainer.step)
        if last or (trainer.step % (8 * log_every) == 0 and trainer.step > recipe.continuous_steps):
            scores = held_out_scores(trainer.tokenizer, held_BCHW)
            attempt.log({f"held_out_{name}": value for name, value in scores.items()}, step=trainer.step)
        stopping = attempt.should_stop and not last
        if trainer.step % checkpoint_every == 0 or stopping or last:
            attempt.publish(own, trainer.save)
            attempt.forget_earlier_checkpoints()
        if stopping:
            attempt.stop()
    progress.close()


def _restore(attempt: Attempt, trainer: Trainer, own: Path) -> None:
    """Goes on from the newest checkpoint that can be read; says which could not."""
    for path in (own, *(folder / own.name for folder in attempt.earlier_checkpoints())):
        if path.is_file():
            try:
                trainer.restore(path)
            except WeightsError as error:
                print(f"warning: {error}; passed over", file=sys.stderr)
                continue
            attempt.resumed_at(trainer.step)
            return


@torch.no_grad()
def _write(
    attempt: Attempt,
    spec: TokenizerSpec,
    network: vq.Tokenizer,
    facts: dict[str, Any],
    held_BCHW: torch.Tensor,
) -> None:
    scores = held_out_scores(network, held_BCHW)
    attempt.headline("held_out_psnr", scores["psnr"], {"images": len(held_BCHW), "split": "held out of training"})
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    attempt.publish(attempt.files / "weights.safetensors", lambda path: save_tensors(path, weights, {}))
    write_json(attempt.files / "tokenizer.json", describe(spec, facts))
    write_json(attempt.files / "scores.json", {"held_out": scores})
    shown = held_BCHW[:32]
    made = network.decode(network.encode(shown))
    pictures = [to_uint8(to_unit(x)).cpu() for x in (shown, made)]
    rows = [list(half) for start in range(0, len(shown), 16) for half in (p[start : start + 16] for p in pictures)]
    picture = picture_grid(rows, scale=max(1, 56 // shown.shape[-1]))
    attempt.publish(attempt.files / "reconstructions.png", lambda path: _save_picture(path, picture))
    attempt.show(attempt.files / "reconstructions.png")
    attempt.fact(
        codebook_size=network.codebook_size,
        downsample_factor=network.downsample_factor,
        image_size=list(held_BCHW.shape[2:]),
        **facts,
    )


def _save_picture(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path, format="PNG")
