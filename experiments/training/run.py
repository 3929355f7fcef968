"""One training run of a step: the trainer with its journal, its checkpoints and requests to stop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from experiments.running.attempt import Attempt
from experiments.store.typed_json import Block
from experiments.training.cadence import Cadence, ShownCadence
from experiments.training.clock import Clock
from experiments.training.kept import publish_kept
from experiments.training.learner import Learner
from experiments.training.pictures import SampleGrids
from maskgit_core.batches.held_out import HeldOut
from maskgit_core.batches.tokens import ahead
from maskgit_core.errors import ArtifactError
from maskgit_core.files import link_or_copy, write_json
from maskgit_core.layers.sharding import whole
from maskgit_core.refusals import check_goes_on
from maskgit_core.token_groups import split_tokens
from maskgit_core.trained import RAW_FILE, WEIGHTS_FILE
from maskgit_core.training.checkpoints import (
    BackgroundWriter,
    checkpoint_name,
    checkpoint_step,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_tensors,
)
from maskgit_core.training.exchange import StopVote
from maskgit_core.training.masked import MaskedBatch, Masker, masked_steps
from maskgit_core.training.meters import DivergedError, check_health
from maskgit_core.training.recipe import CriticRecipe, Recipe, learning_rate
from maskgit_core.training.trainer import Trainer
from maskgit_core.training.utilisation import matrix_rate, operations_per_token


class Source(Protocol):
    """Where training batches come from; see the stage."""

    facts: Block
    held_out: HeldOut | None

    def batches(self, **place: object) -> Any:
        """Endless batches; `place` is batch_size, seed, rank, world_size and start."""

    def tokenizer(self) -> object:
        """The tokenizer that decodes the tokens."""


class TrainingRun:
    """The trainer with its journal, checkpoints and stop requests.

    Args:
        learner: what is trained; of a config's transformer, `transformer_learner`.
        start: the folder of files of the model or kept checkpoint to go on from, or None.
    """

    def __init__(
        self,
        attempt: Attempt,
        recipe: Recipe | CriticRecipe,
        learner: Learner,
        source: Source,
        cadence: Cadence,
        start: Path | None = None,
    ) -> None:
        self.attempt, self.recipe, self.learner, self.source, self.cadence = attempt, recipe, learner, source, cadence
        self.facts = source.facts
        how = {"compile_blocks": cadence.compile, "recompute": cadence.recompute, "fsdp": cadence.fsdp}
        self.trainer = Trainer(learner.module, recipe, attempt.device, **how, loss=learner.loss)
        self.vote = StopVote(self.trainer.accelerator.num_processes)
        self.writer = BackgroundWriter()
        self.pictures: SampleGrids | None = None
        self._samples_every = cadence.samples_every if isinstance(cadence, ShownCadence) else 0
        if isinstance(cadence, ShownCadence) and cadence.samples_every and attempt.is_main:
            grid = (int(self.facts["grid"][0]), int(self.facts["grid"][1]))
            self.pictures = SampleGrids(
                attempt, source.tokenizer(), grid, cadence.samples_classes, cadence.samples_guidance
            )
        self._start = start
        self._saved_at = self._began_at = -1

    def execute(self) -> None:
        """Resumes, trains to the end and publishes; ends early, saved, where a stop is asked for."""
        self.resume()
        warm, steps = self.recipe.warmup_steps, self.recipe.num_train_steps
        if warm > steps and self.attempt.is_main:
            print(f"train.warmup_steps: {warm} of {steps} steps, so train.lr is never reached", flush=True)
        try:
            self.train(self.steps())
            self.publish()
        except DivergedError as error:
            self.writer.wait()
            raise DivergedError(f"{error}; {self._way_back()}") from None

    # -- state on disk -------------------------------------------------------------------------------------------
    def resume(self) -> None:
        """Goes on from the newest readable checkpoint of this step, or from where it was asked to begin."""
        newest, complaints = load_newest([self.attempt.checkpoints, *self.attempt.earlier_checkpoints()])
        for complaint in complaints:
            print(f"{complaint}; going on from {newest[2].name if newest else 'the beginning'}", flush=True)
        if newest is not None:
            tensors, facts, path = newest
            self.trainer.load_state(tensors, facts, str(path))
            if self.attempt.is_main and self._is_kept(self.trainer.step):
                self.keep(path, self.trainer.step)  # killed between saving and keeping, it would be missing for ever
        elif self._start is not None:
            tensors, facts, path = load_checkpoint(find_state(self._start))
            self.trainer.load_state(tensors, facts, str(path))
        self._check_all_go_on_from_the_same_step()
        self._began_at = self._saved_at = self.trainer.step
        if newest is None:
            check_goes_on(self.recipe.num_train_steps, self.trainer.step)
        self.attempt.resumed_at(self.trainer.step + 1)  # the point at a step is logged before its checkpoint

    def save(self) -> None:
        """Publishes a checkpoint in the background; the copy is taken now. Every process must call it.

        Raises:
            DivergedError: the training has gone wrong; what was saved before stays.
        """
        if self._saved_at == self.trainer.step:
            return
        meters = self.trainer.meters.totals()
        if meters is not None:
            self._check(meters["sums"][0] / meters["steps"])
        step = self._saved_at = self.trainer.step
        if not self.attempt.is_main and not self.trainer.is_sharded:
            return
        tensors, facts = self.trainer.state(meters)
        if not self.attempt.is_main:
            return
        path = self.attempt.checkpoints / checkpoint_name(step)

        def write() -> None:
            self.attempt.flush()
            self.attempt.publish(path, lambda temporary: save_tensors(temporary, tensors, facts))
            if self._is_kept(step):
                self.keep(path, step)
            self._forget_old()

        self.writer.submit(write)

    def _forget_old(self) -> None:
        """Deletes all checkpoints but the last few, whichever attempt made them, and what killed attempts left."""
        earlier = self.attempt.earlier_checkpoints()
        checkpoints = list_checkpoints([self.attempt.checkpoints, *earlier])
        # later ones than this attempt began with could not be read
        good = [p for p in checkpoints if p.parent not in earlier or (checkpoint_step(p) or 0) <= self._began_at]
        kept = set(good[: self.cadence.keep_last])
        left = [path for folder in earlier for path in folder.iterdir()]
        for path in {*checkpoints, *left} - kept:
            path.unlink(missing_ok=True)

    def _check_all_go_on_from_the_same_step(self) -> None:
        accelerator = self.trainer.accelerator
        own = torch.tensor([self.trainer.step], device=accelerator.device)
        steps = accelerator.gather(own).tolist()
        if len(set(steps)) > 1:
            raise ArtifactError(
                f"{self.attempt.folder}: the processes read checkpoints of the steps {steps}; "
                "run again, and look at the disk if it stays so"
            )

    def _way_back(self) -> str:
        """Where one can go on after a training went wrong; publishes the last good checkpoint for that."""
        if self._saved_at <= 0:
            return "nothing was saved before"
        paths = list_checkpoints([self.attempt.checkpoints, *self.attempt.earlier_checkpoints()])
        if not paths and self._start is not None:
            return f"it began with step {self._saved_at} of train.continue_from, which is as it was"
        # the weights of the step before are those with which it went wrong
        limit = min(self._saved_at, self.trainer.step - 2)
        by_step = {step: path for path in paths if (step := checkpoint_step(path)) and step <= limit}
        if not by_step:
            return "nothing good was saved before"
        for step, path in by_step.items() if self.attempt.is_main else ():
            self.keep(path, step)
        last, *before = by_step
        older = f", or @{' or @'.join(map(str, before))} should it go wrong from there too" if before else ""
        return f"the last good state is kept: train.continue_from={self.attempt.folder.name}@{last}{older}"

    def _is_kept(self, step: int) -> bool:
        return bool(self.cadence.keep_every) and step % (self.cadence.keep_every or 1) == 0

    def keep(self, checkpoint: Path, step: int) -> None:
        """Publishes a checkpoint as an artifact of its own, `train@STEP`: usable at once and for good."""

        def fill(files: Path) -> None:
            link_or_copy(checkpoint, files / checkpoint.name)
            self._describe(files)

        publish_kept(self.attempt, step, fill, {**self.facts, "num_train_steps": step})

    def publish(self) -> None:
        """Writes the outputs of the finished training: weights, description and the last state."""
        self.save()
        self.writer.wait()
        weights = self.trainer.weights() if self.attempt.is_main or self.trainer.is_sharded else {}
        if not self.attempt.is_main:
            return
        facts = {"step": self.trainer.step}
        names = {"model": WEIGHTS_FILE, "raw": RAW_FILE}
        for kind, tensors in weights.items():
            write = partial(save_tensors, tensors=tensors, facts=facts)
            self.attempt.publish(self.attempt.files / names[kind], write)
        folders = [self.attempt.checkpoints, *self.attempt.earlier_checkpoints()]
        last = [path for path in list_checkpoints(folders) if checkpoint_step(path) == self.trainer.step][:1]
        for path in last:
            link_or_copy(path, self.attempt.files / path.name)
        if self.pictures is not None:
            self.pictures.publish()
        self._describe(self.attempt.files)
        self.attempt.fact(**self.facts, num_train_steps=self.trainer.step)

    def _describe(self, files: Path) -> None:
        write_json(files / self.learner.file, {**self.learner.described, "facts": dict(self.facts)})

    # -- the loop ------------------------------------------------------------------------------------------------
    def steps(self) -> Iterator[list[MaskedBatch]]:
        """Masked micro-batches, one list per step, from the present step of the training."""
        recipe, accelerator = self.recipe, self.trainer.accelerator
        own = recipe.batch_size // accelerator.num_processes
        parts = -(-own // (self.cadence.micro_batch_size or own))
        model = self.learner.transformer
        masker = Masker(recipe, model.mask_token_id, model.null_label, partial(split_tokens, model))
        stream = self.source.batches(
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.trainer.step * recipe.batch_size,
        )
        return masked_steps(stream, masker, parts, accelerator.device)

    def train(self, steps: Iterator[list[MaskedBatch]]) -> None:
        """Trains to the last step; ends early, saved, where a stop is asked for."""
        clock = Clock(self.trainer.step)
        progress = self.attempt.progress(self.recipe.num_train_steps, unit="step", label="train")
        progress.start_at(self.trainer.step)
        ready, cadence = ahead(steps, 2), self.cadence
        while self.trainer.step < min(self.recipe.num_train_steps, cadence.pause_at or self.recipe.num_train_steps):
            with clock.waiting():
                pieces = next(ready)
            self.trainer.train_step(pieces)
            progress.update(1)
            step, at_end = self.trainer.step, self.trainer.step == self.recipe.num_train_steps
            if step % cadence.log_every == 0 or at_end:
                progress.line(**self._log(clock))
            with clock.aside():
                self._look(step, at_end)  # before the checkpoint: a resume from it does not look again
            if step % cadence.checkpoint_every == 0 or self._is_kept(step):
                self.save()
            if not at_end and self.vote.agreed(self.attempt.should_stop, step):
                self._put_down()
                self.attempt.stop()
        if self.trainer.step < self.recipe.num_train_steps:
            self._put_down()
            self.attempt.pause(f"paused at step {self.trainer.step}")

    def _put_down(self) -> None:
        self.save()
        self.writer.wait()

    def _log(self, clock: Clock) -> dict[str, float]:
        """Logs the means since the last call; returns those that a line of the log shows."""
        step, trainer = self.trainer.step, self.trainer
        metrics = trainer.meters.read()
        metrics["lr"] = learning_rate(self.recipe, step - 1)
        if trainer.ema is not None:
            metrics["ema_distance"] = float(whole(trainer.ema.distance(trainer.parameters)))
        seconds, metrics["data_wait_share"], steps = clock.lap(step)
        metrics["tokens_per_s"] = steps * self.recipe.batch_size * self.facts["num_tokens"] / seconds
        rate = metrics["tokens_per_s"] * operations_per_token(trainer.model)
        metrics["model_tflops_per_s"] = rate / 1e12
        metrics["model_flops_utilisation"] = rate / (self._peak() * trainer.accelerator.num_processes)
        self.attempt.log(metrics, step)
        self._check(metrics["loss"])
        return {name: metrics[name] for name in ("loss", trainer.meters.accuracy, "lr", "tokens_per_s")}

    def _check(self, loss: float) -> None:
        """Raises `DivergedError` where the mean loss, or the gradient of this step, has gone wrong."""
        trainer = self.trainer
        norm = float(trainer.meters.grad_norm) if trainer.meters.grad_norm is not None else 0.0
        # with a gradient scaler the step is left out instead
        check_health(loss, norm if trainer.accelerator.scaler is None else 0.0, trainer.step, self.learner.num_choices)

    def _peak(self) -> float:
        """Operations a second of one process's device: as named, else measured."""
        if self.cadence.peak_tflops is not None:
            return self.cadence.peak_tflops * 1e12
        return matrix_rate(self.attempt.device, self.recipe.precision)

    def _look(self, step: int, at_end: bool) -> None:
        """Held-out likelihood and pictures, where they are due."""
        held_out, cadence = self.source.held_out, self.cadence
        if held_out is not None and self.attempt.is_main and (step % cadence.checkpoint_every == 0 or at_end):
            self.attempt.log(held_out.nll(self.trainer.model), step)
        if self.pictures is not None and (step % self._samples_every == 0 or at_end):
            with self.trainer.averaged() as model, self.trainer.accelerator.autocast():
                self.pictures.draw(model, step)


def find_state(files: Path) -> Path:
    """The full state among the files of a finished model or a kept checkpoint.

    Raises:
        ArtifactError: there is none; the model was imported, not trained.
    """
    checkpoints = list_checkpoints([files])
    if not checkpoints:
        raise ArtifactError(f"{files}: holds no training state to go on from; name a model that was trained here")
    return checkpoints[0]
