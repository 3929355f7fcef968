"""One training run of a step: the trainer with its journal, its checkpoints and requests to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.atomic import write_json
from experiments.attempt import Attempt
from experiments.components import MODEL_FILE, RAW_FILE, WEIGHTS_FILE, describe
from experiments.schema import ModelSpec
from maskgit_core.batches import ahead
from maskgit_core.checkpoints import BackgroundWriter, checkpoint_name, list_checkpoints, load_newest, save_tensors
from maskgit_core.errors import ConfigError
from maskgit_core.masked_batches import MaskedBatch, Masker, masked_steps
from maskgit_core.recipe import Recipe, learning_rate
from maskgit_core.stop_vote import StopVote
from maskgit_core.training import Trainer


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in optimizer steps, and how many checkpoints stay; none of it changes results."""

    log_every: int
    checkpoint_every: int
    keep_last: int
    compile_blocks: bool = False


class TrainingRun:
    """The trainer with its journal, checkpoints and stop requests."""

    def __init__(
        self,
        attempt: Attempt,
        recipe: Recipe,
        spec: ModelSpec,
        facts: dict[str, Any],
        cadence: Cadence,
    ) -> None:
        self.attempt, self.recipe, self.spec, self.facts, self.cadence = attempt, recipe, spec, facts, cadence
        model = new_model(spec, facts, recipe.seed)
        self.trainer = Trainer(model, recipe, attempt.device, cadence.compile_blocks)
        self.vote = StopVote(self.trainer.accelerator.num_processes)
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
        self.attempt.resumed_at(self.trainer.step + 1)  # the point at a step is logged before its checkpoint

    def save(self) -> None:
        """Publishes a checkpoint in the background; the copy is taken now."""
        if not self.attempt.is_main or self._saved_at == self.trainer.step:
            return
        tensors, facts = self.trainer.state()
        self._saved_at = self.trainer.step
        path = self.attempt.checkpoints / checkpoint_name(self.trainer.step)

        def write() -> None:
            self.attempt.flush()
            self.attempt.publish(path, lambda temporary: save_tensors(temporary, tensors, facts))
            for old in list_checkpoints([self.attempt.checkpoints])[self.cadence.keep_last :]:
                old.unlink(missing_ok=True)
            self.attempt.forget_earlier_checkpoints()

        self.writer.submit(write)

    def publish(self) -> None:
        """Writes the outputs of the finished training."""
        self.save()
        self.writer.wait()
        if not self.attempt.is_main:
            return
        facts = {"step": self.trainer.step}
        names = {"model": WEIGHTS_FILE, "raw": RAW_FILE}
        for kind, tensors in self.trainer.weights().items():
            write = partial(save_tensors, tensors=tensors, facts=facts)
            self.attempt.publish(self.attempt.files / names[kind], write)
        write_json(self.attempt.files / MODEL_FILE, describe(self.spec, self.facts))
        self.attempt.fact(**self.facts, num_train_steps=self.trainer.step)

    def steps(self, batches: Callable[..., Iterable[Any]], micro_batch_size: int | None) -> Iterator[list[MaskedBatch]]:
        """Masked micro-batches, a list a step, from where the training stands.

        Args:
            batches: makes this process's endless batches from batch_size, seed, rank, world_size and start.
            micro_batch_size: samples to put through at once; None for all of this process's.
        """
        recipe, accelerator = self.recipe, self.trainer.accelerator
        own = -(-recipe.batch_size // accelerator.num_processes)
        masker = Masker(recipe, self.trainer.model.mask_token_id, self.trainer.model.null_label)
        stream = batches(
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.trainer.step * recipe.batch_size,
        )
        return masked_steps(stream, masker, -(-own // (micro_batch_size or own)), self.attempt.device)

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
            if step % self.cadence.log_every == 0 or step == self.recipe.num_train_steps:
                self._log(waited)
            if step % self.cadence.checkpoint_every == 0:
                self.save()
            if step < self.recipe.num_train_steps and self.vote.agreed(self.attempt.should_stop, step):
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
