"""Stage `train`: a masked transformer on cached tokens, or on images encoded on the fly.

Publishes `model.safetensors` (the moving average where there is one), `raw.safetensors` and `model.json`. Resumes
exactly: batches, masks, dropped labels and, on CPUs, dropout are functions of the seed and of places in the training
stream, and a checkpoint holds weights, optimizer and moving average. So another number of processes sees the same
losses but for rounding, and on GPUs for what dropout draws: there the step and the process seed it. On a request to
stop it finishes the step, saves and ends.

A training that goes on from another's step N (`continue_from`) takes its weights, moments and average, and stands at
place N * batch_size of the stream that its own seed, batch size and tokens define: with the same ones it is the same
training, with others it is where they would stand after N steps. Schedules count from the first training's beginning.

| keyword | meaning |
|---|---|
| tokens | the cache to train on; or images, image_tokenizer: what to encode on the fly instead |
| image_views, image_crop_size, image_num_crops, image_crop_scale | of images on the fly; as of `cache_tokens` |
| num_train_steps, batch_size | optimizer steps; samples a step, over all processes |
| lr, lr_schedule, lr_end, warmup_steps | see `maskgit_core.recipe.learning_rate` |
| weight_decay, decay_on | of all parameters, or of matrices alone: not of biases, norms, embeddings |
| grad_clip | largest gradient norm; null for no limit |
| label_drop | share of labels replaced by "no class", for guidance |
| loss_on, unmasked_weight | see `maskgit_core.losses.token_weights` |
| mask_kind, mask_rounding, mask_ratio_per, min_mask_ratio | see `maskgit_core.masking`; a ratio per sample or batch |
| ema_decay, ema_warmup | see `maskgit_core.recipe.ema_decay_at`; null for no moving average |
| precision | of the forward pass (autocast); weights and moments stay fp32 |
| continue_from | a finished model to go on from, or a kept checkpoint: `train.continue_from=quickstart/train@700` |
| keep_every | checkpoints of these steps are kept as artifacts: `sample.model=train@50000`, or to continue from |
| held_out_share | scattered share that is not trained on; its likelihood at fixed mask ratios is logged |
| micro_batch_size | samples a process puts through at once; more are accumulated |
| compile | compile each transformer block |
| log_every, checkpoint_every, keep_last | in optimizer steps; checkpoints kept while training |
| samples_every | a grid of samples of the same seeds every so many steps, as `samples/step-*.png`; 0 for none |
| peak_tflops | rate of the device that utilisation is a share of (its data sheet's); null: matrix products are timed |
"""

from __future__ import annotations

from typing import Annotated, Literal

from experiments.config.specs import DatasetSpec, Input, ModelSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.training.run import Cadence, TrainingRun
from experiments.training.source import Source
from maskgit_core.hints import Execution, Kind, Neutral, Range
from maskgit_core.images.views import Views
from maskgit_core.losses import LossOn
from maskgit_core.masking import Schedule
from maskgit_core.training.recipe import DecayOn, EmaWarmup, LrSchedule, Recipe

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
    num_train_steps: Annotated[int, Range(1)],
    batch_size: Annotated[int, Range(1)] = 256,
    lr: Annotated[float, Range(0.0, low_open=True)] = 1e-4,
    lr_schedule: LrSchedule = "cosine",
    lr_end: Annotated[float, Range(0.0)] = 0.0,
    warmup_steps: Annotated[int, Range(0)] = 5000,
    optimizer: Literal["adamw", "adam"] = "adamw",
    weight_decay: Annotated[float, Range(0.0)] = 0.045,
    betas: Annotated[tuple[float, float], Range(0.0, 1.0, high_open=True)] = (0.9, 0.96),
    grad_clip: Annotated[float | None, Range(0.0, low_open=True)] = 1.0,
    label_drop: Annotated[float, Range(0.0, 1.0)] = 0.1,
    label_smoothing: Annotated[float, Range(0.0, 0.99)] = 0.1,
    loss_on: LossOn = "masked",
    unmasked_weight: Annotated[float, Range(0.0, 1.0)] = 0.1,
    mask_schedule: Schedule = "cosine",
    mask_schedule_power: Annotated[float, Range(0.0, low_open=True)] = 1.0,
    mask_kind: Literal["exact", "bernoulli"] = "exact",
    mask_rounding: Literal["ceil", "round"] = "ceil",
    mask_ratio_per: Literal["sample", "batch"] = "sample",
    min_mask_ratio: Annotated[float, Range(0.0, 1.0, high_open=True)] = 0.0,
    ema_decay: Annotated[float | None, Range(0.0, 1.0, high_open=True)] = 0.9999,
    ema_warmup: EmaWarmup = "inverse_power",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    seed: int = 0,
    continue_from: Annotated[Input | None, Kind("model")] = None,
    keep_every: Annotated[int | None, Range(1), Neutral(None)] = None,
    held_out_share: Annotated[float, Range(0.0, 0.9), Neutral(0.0)] = 0.0,
    decay_on: Annotated[DecayOn, Neutral("all")] = "all",
    num_workers: Annotated[Execution[int], Range(0, 256)] = 0,
    micro_batch_size: Annotated[Execution[int | None], Range(1)] = None,
    compile: Execution[bool] = False,
    log_every: Annotated[Execution[int], Range(1)] = 50,
    checkpoint_every: Annotated[Execution[int], Range(1)] = 1000,
    keep_last: Annotated[Execution[int], Range(1)] = 2,
    samples_every: Annotated[Execution[int], Range(0)] = 0,
    peak_tflops: Annotated[Execution[float | None], Range(0.0, low_open=True)] = None,
) -> None:
    """Trains; see the table above."""
    recipe = Recipe(**{name: value for name, value in locals().items() if name in Recipe.__dataclass_fields__})
    cadence = Cadence(
        log_every, checkpoint_every, keep_last, keep_every, micro_batch_size, compile, samples_every, peak_tflops
    )
    views = Views(image_views, image_crop_size, image_num_crops, (image_crop_scale[0], image_crop_scale[1]))
    source = Source(tokens, images, image_tokenizer, views, attempt.device, num_workers)
    if held_out_share:
        source.hold_out(held_out_share, is_looked_at=attempt.is_main)
    start = None if continue_from is None else continue_from.files
    TrainingRun(attempt, recipe, model, source, cadence, start).execute()
