"""Stage `train`: a masked transformer on cached tokens, or on images encoded on the fly.

Publishes `model.safetensors` (the moving average where there is one), `raw.safetensors` and `model.json`. Resumes
exactly: batches, masks, dropped labels and, on CPUs, dropout are functions of the seed and of places in the training
stream, and a checkpoint holds weights, optimizer and moving average. So another number of processes sees the same
losses but for rounding, and on GPUs for what dropout draws: there the step and the process seed it. On a request to
stop it finishes the step, saves and ends.

A training that goes on from another's step N (`continue_from`) takes its weights, moments and average, and begins at
place N * batch_size of the stream that its own seed, batch size and tokens define: with the same ones it is the same
training, with others it is where they would be after N steps. Schedules count from the first training's beginning.
"""

from __future__ import annotations

from typing import Annotated, Literal

from experiments.config.specs import DatasetSpec, Input, ModelSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.training.cadence import ShownCadence
from experiments.training.learner import transformer_learner
from experiments.training.run import TrainingRun
from experiments.training.source import Source
from maskgit_core.hints import Execution, Kind, Neutral, Range
from maskgit_core.images.views import Views
from maskgit_core.training.recipe import Recipe

VERSION = 1
PRODUCES = "model"


def run(
    attempt: Attempt,
    *,
    model: ModelSpec,
    tokens: Annotated[Input | None, Kind("tokens")] = None,
    images: DatasetSpec | None = None,
    image_tokenizer: Annotated[Input | TokenizerSpec | None, Kind("tokenizer")] = None,
    image_views: Literal["original", "flip", "ten_crop", "random_resized_crop"] = "flip",
    image_crop_size: Annotated[int | None, Range(8, 4096), Neutral(None)] = None,
    image_num_crops: Annotated[int, Range(1, 1000), Neutral(10)] = 10,
    image_crop_scale: Annotated[tuple[float, float], Range(0.0, 1.0, low_open=True), Neutral((0.8, 1.0))] = (0.8, 1.0),
    recipe: Recipe,
    continue_from: Annotated[Input | None, Kind("model")] = None,
    held_out_share: Annotated[float, Range(0.0, 0.9), Neutral(0.0)] = 0.0,
    cadence: ShownCadence,
    num_workers: Annotated[Execution[int], Range(0, 256)] = 0,
) -> None:
    """Trains.

    Args:
        model: the transformer.
        tokens: the cache to train on; or images, image_tokenizer: what to encode on the fly instead.
        image_views, image_crop_size, image_num_crops, image_crop_scale: of images on the fly; as of `cache_tokens`.
        recipe, cadence: their fields are keys of this stage.
        continue_from: a finished model to go on from, or a kept checkpoint: `train.continue_from=quickstart/train@700`.
        held_out_share: scattered share that is not trained on; its likelihood at fixed mask ratios is logged.
        num_workers: threads that read ahead.
    """
    views = Views(image_views, image_crop_size, image_num_crops, (image_crop_scale[0], image_crop_scale[1]))
    source = Source(tokens, images, image_tokenizer, views, attempt.device, num_workers)
    if held_out_share:
        source.hold_out(held_out_share, is_looked_at=attempt.is_main)
    start = None if continue_from is None else continue_from.files
    learner = transformer_learner(model, source.facts, recipe.seed)
    TrainingRun(attempt, recipe, learner, source, cadence, start).execute()
