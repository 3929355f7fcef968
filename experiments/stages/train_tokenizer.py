"""Trains a tokenizer: `vq`, made for little compute, or `vqgan`, the network of the published ones.

What comes out is `tokenizer.json` (name, options, facts) and `weights.safetensors`; a picture shows held-out images
above their reconstructions. Killed anywhere, it goes on from its last checkpoint and gives the same tokenizer, bit for
bit on the CPU. Several processes divide each batch; their number changes rounding alone.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from experiments.config.specs import DatasetSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.running.components import describe
from experiments.store.typed_json import Block
from experiments.training.tokenizer_run import Cadence, TokenizerRun, reconstructions, save_picture
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.files import write_json
from maskgit_core.hints import Neutral
from maskgit_core.images.pixels import stack, to_signed
from maskgit_core.tokenizers import vq, vqgan
from maskgit_core.training.checkpoints import save_tensors
from maskgit_core.training.tokenizer import Trainer, held_out_scores
from maskgit_core.training.tokenizer_export import check_exportable, container
from maskgit_core.training.tokenizer_images import TrainingImages, held_out_ids
from maskgit_core.training.tokenizer_recipe import Positive, Recipe, check_recipe
from maskgit_core.training.trainer import make_accelerator

VERSION = 2
PRODUCES = "tokenizer"


def run(
    attempt: Attempt,
    *,
    dataset: DatasetSpec,
    tokenizer: TokenizerSpec,
    recipe: Recipe,
    cadence: Cadence,
    num_held_out: Positive = 500,
    export: Annotated[bool, Neutral(False)] = False,
) -> None:
    """Trains and writes the tokenizer.

    Args:
        dataset: images to train on; a few of them are held out to judge by.
        tokenizer: `vq` or `vqgan` and its options.
        recipe, cadence: their fields are keys of this stage.
        num_held_out: images kept from training (at most a tenth).
        export: write the `vqgan` in taming-transformers' (or LlamaGen's) container too.
    """
    images = dataset.build()
    if len(images) < 2:
        raise DataError(f"dataset: found {len(images)} images; training a tokenizer needs at least 2")
    facts = {"in_channels": int(images[0].image.shape[2])}
    network = _build(tokenizer, recipe.seed, facts)
    check_recipe(recipe, attempt.world_size, images.image_size, network.downsample_factor)
    if export:
        check_exportable(network)
    device = attempt.device if attempt.world_size == 1 else make_accelerator("fp32", attempt.device).device
    train_ids, held_ids = held_out_ids(recipe.seed, len(images), num_held_out)
    held_BCHW = to_signed(stack(images, held_ids.tolist())[0]).to(device)
    trainer = Trainer(network.to(device), recipe, cadence.compile)
    workers, exchange = cadence.num_workers, trainer.exchange
    training = TrainingImages(images, train_ids, recipe, workers, exchange.rank, exchange.processes)
    TokenizerRun(attempt, trainer, training, held_BCHW, cadence).execute()
    if attempt.is_main:
        with trainer.averaged() as trained:
            _write(attempt, tokenizer, trained.eval(), facts, held_BCHW, export)
        if trainer.perceptual is not None:
            attempt.fact(perceptual={"name": recipe.perceptual, "sha256": trainer.perceptual.weights_sha256})


def _build(spec: TokenizerSpec, seed: int, facts: Block) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build(**facts)
    if not isinstance(network, vq.Tokenizer | vqgan.Tokenizer):
        raise ConfigError(
            f"tokenizer.name: found {spec.name}; train_tokenizer trains [vq, vqgan]; use it as it is, or take one"
        )
    return network


@torch.no_grad()
def _write(
    attempt: Attempt,
    spec: TokenizerSpec,
    network: Any,
    facts: Block,
    held_BCHW: torch.Tensor,
    export: bool,
) -> None:
    scores = held_out_scores(network, held_BCHW)
    attempt.headline("held_out_psnr", scores["psnr"], {"images": len(held_BCHW), "split": "held out of training"})
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    attempt.publish(attempt.files / "weights.safetensors", lambda path: save_tensors(path, weights, {}))
    if export:
        name, content = container(network)
        attempt.publish(attempt.files / name, lambda path: torch.save(content, path))
    write_json(attempt.files / "tokenizer.json", describe(spec, facts))
    write_json(attempt.files / "scores.json", {"held_out": scores})
    save_picture(attempt, attempt.files / "reconstructions.png", reconstructions(network, held_BCHW))
    attempt.show(attempt.files / "reconstructions.png")
    attempt.fact(
        codebook_size=network.codebook_size,
        downsample_factor=network.downsample_factor,
        image_size=list(held_BCHW.shape[2:]),
        **facts,
    )
