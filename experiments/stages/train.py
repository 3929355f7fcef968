"""Stage `train`: a masked transformer on cached tokens, or on images encoded on the fly.

Resumes exactly: batches, masks, dropped labels and dropout are functions of the seed and of places in the training
stream, and a checkpoint holds weights, optimizer and moving average. On a request to stop it finishes the step, saves
and ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from experiments.atomic import write_json
from experiments.attempt import Attempt
from experiments.components import MODEL_FILE, RAW_FILE, WEIGHTS_FILE, describe
from experiments.schema import Input, ModelSpec
from maskgit_core.batches import Batches, ahead
from maskgit_core.checkpoints import BackgroundWriter, checkpoint_name, list_checkpoints, load_newest, save_tensors
from maskgit_core.errors import ConfigError
from maskgit_core.hints import Execution, Kind, Range
from maskgit_core.losses import LossOn
from maskgit_core.masked_batches import MaskedBatch, Masker, masked_steps
from maskgit_core.masking import Schedule
from maskgit_core.recipe import EmaWarmup, LrSchedule, Recipe, learning_rate
from maskgit_core.shards import TokenShards
from maskgit_core.training import Trainer

VERSION = 1
PRODUCES = "model"


def run(
    attempt: Attempt,
    *,
    tokens: Annotated[Input, Kind("tokens")],
    model: ModelSpec,
    num_train_steps: Annotated[int, Range(1)],
    batch_size: Annotated[int, Range(1)] = 256,
    lr: Annotated[float, Range(0.0, low_open=True)] = 1e-4,
    lr_schedule: LrSchedule = "cosine",
    lr_end: Annotated[float, Range(0.0)] = 0.0,
    warmup_steps: Annotated[int, Range(0)] = 5000,
    optimizer: Literal["adamw", "adam"] = "adamw",
    weight_decay: Annotated[float, Range(0.0)] = 0.045,
    betas: tuple[float, float] = (0.9, 0.96),
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
    min_mask_ratio: Annotated[float, Range(0.0, 1.0)] = 0.0,
    ema_decay: Annotated[float | None, Range(0.0, 1.0)] = 0.9999,
    ema_warmup: EmaWarmup = "inverse_power",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    num_workers: Execution[int] = 0,
    micro_batch_size: Annotated[Execution[int | None], Range(1)] = None,
    compile: Execution[bool] = False,
    log_every: Annotated[Execution[int], Range(1)] = 50,
    checkpoint_every: Annotated[Execution[int], Range(1)] = 1000,
    keep_last: Annotated[Execution[int], Range(1)] = 2,
) -> None:
    """Trains and publishes `model.safetensors` (the moving average), `raw.safetensors` and `model.json`.

    Args:
        num_train_steps: optimizer steps. batch_size: samples a step, over all processes.
        lr, lr_schedule, lr_end, warmup_steps: see `maskgit_core.recipe.learning_rate`.
        label_drop: share of labels replaced by "no class". grad_clip: largest gradient norm, None for no limit.
        mask_ratio_per: one ratio per sample, or one for the whole batch.
        precision: of the forward pass (autocast); weights and moments stay float32.
        micro_batch_size: samples a process puts through at once; more are accumulated.
        log_every, checkpoint_every: in optimizer steps. keep_last: checkpoints kept while training.
    """
    given = locals()
    recipe = Recipe(**{name: given[name] for name in Recipe.__dataclass_fields__})
    shards = TokenShards(tokens.files)
    facts = {
        "codebook_size": shards.codebook_size,
        "num_tokens": shards.num_tokens,
        "num_classes": shards.num_classes,
        "grid": list(shards.grid),
    }
    run_ = TrainingRun(attempt, recipe, model, facts, compile, log_every, checkpoint_every, keep_last)
    run_.resume()
    accelerator = run_.trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = Batches(
        shards,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world,
        start=run_.trainer.step * batch_size,
        num_workers=num_workers,
    )
    parts = -(-batch_size // (world * (micro_batch_size or batch_size)))
    masker = Masker(recipe, run_.trainer.model.mask_token_id, run_.trainer.model.null_label)
    run_.train(masked_steps(batches, masker, parts, attempt.device))
    run_.publish()


class TrainingRun:
    """The trainer with its journal, checkpoints and stop requests."""

    def __init__(
        self,
        attempt: Attempt,
        recipe: Recipe,
        spec: ModelSpec,
        facts: dict[str, Any],
        compile_blocks: bool,
        log_every: int,
        checkpoint_every: int,
        keep_last: int,
    ) -> None:
        self.attempt, self.recipe, self.spec, self.facts = attempt, recipe, spec, facts
        self.log_every, self.checkpoint_every, self.keep_last = log_every, checkpoint_every, keep_last
        model = new_model(spec, facts, recipe.seed)
        self.trainer = Trainer(model, recipe, attempt.device, compile_blocks)
        self.writer = BackgroundWriter()
        self._saved_at = -1
        self._since = (time.perf_counter(), 0.0, 0)  # clock, seconds waited for data, step

    # -- state on disk -------------------------------------------------------------------------------------------
    def resume(self) -> None:
        """Goes on from the newest readable checkpoint of this step, if there is one."""
        folders = [self.attempt.checkpoints, *self.attempt.earlier_checkpoints()]
        found = load_newest(folders)
        if found is not None:
            tensors, facts, path, complaints = found
            for complaint in complaints:
                print(f"{complaint}; going on from {path.name}", flush=True)
            self.trainer.load_state(tensors, facts, str(path))
            self._saved_at = self.trainer.step
        self.attempt.resumed_at(self.trainer.step)

    def save(self) -> None:
        """Publishes a checkpoint in the background; the copy is taken now."""
        if not self.attempt.is_main or self._saved_at == self.trainer.step:
            return
        tensors, facts = self.trainer.state()
        self._saved_at = self.trainer.step
        path = self.attempt.checkpoints / checkpoint_name(self.trainer.step)

        def write() -> None:
            self.attempt.publish(path, lambda temporary: save_tensors(temporary, tensors, facts))
            for old in list_checkpoints([self.attempt.checkpoints])[self.keep_last :]:
                old.unlink(missing_ok=True)
            self.attempt.forget_earlier_checkpoints()

        self.writer.submit(write)

    def publish(self) -> None:
        """Writes the outputs of the finished training."""
        self.save()
        self.writer.wait()
        if not self.attempt.is_main:
            return
        names = {"model": WEIGHTS_FILE, "raw": RAW_FILE}
        for kind, tensors in self.trainer.weights().items():
            self.attempt.publish(
                self.attempt.files / names[kind],
                lambda temporary, t=tensors: save_tensors(temporary, t, {"step": self.trainer.step}),
            )
        write_json(self.attempt.files / MODEL_FILE, describe(self.spec, self.facts))
        self.attempt.fact(**self.facts, num_train_steps=self.trainer.step)

    # -- the loop ------------------------------------------------------------------------------------------------
    def train(self, steps: Iterator[list[MaskedBatch]]) -> None:
        """Trains to the last step; ends early, saved, where a stop is asked for."""
        progress = self.attempt.progress(self.recipe.num_train_steps, unit="step", label="train")
        progress.start_at(self.trainer.step)
        waited = 0.0
        ready = ahead(steps, 2)
        while self.trainer.step < self.recipe.num_train_steps:
            began = time.perf_counter()
            pieces = next(ready)
            waited += time.perf_counter() - began
            self.trainer.train_step(pieces)
            progress.update(1)
            step = self.trainer.step
            if step % self.log_every == 0 or step == self.recipe.num_train_steps:
                self._log(waited)
            if step % self.checkpoint_every == 0:
                self.save()
            if self.attempt.should_stop and step < self.recipe.num_train_steps:
                self.save()
                self.writer.wait()
                self.attempt.stop()

    def _log(self, waited: float) -> None:
        step, now = self.trainer.step, time.perf_counter()
        clock, waited_before, step_before = self._since
        metrics = self.trainer.meters.read()
        seconds = max(now - clock, 1e-9)
        metrics["lr"] = learning_rate(self.recipe, step - 1)
        num_tokens = (step - step_before) * self.recipe.batch_size * self.facts["num_tokens"]
        metrics["tokens_per_s"] = num_tokens / seconds
        metrics["data_wait_share"] = (waited - waited_before) / seconds
        self._since = (now, waited, step)
        self.attempt.log(metrics, step)


def new_model(spec: ModelSpec, facts: dict[str, Any], seed: int) -> Any:
    """A model with fresh weights that are a function of its config and `seed`."""
    import torch

    known = {name: facts[name] for name in ("codebook_size", "num_tokens", "num_classes")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build(**known)
    if model.codebook_size < facts["codebook_size"]:
        raise ConfigError(
            f"model: {spec.name} knows {model.codebook_size} tokens but the tokenizer has {facts['codebook_size']}; "
            "use the tokenizer the model is made for"
        )
    return model
