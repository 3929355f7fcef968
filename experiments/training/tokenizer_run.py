"""One training of a tokenizer: the trainer with its journal, checkpoints, pictures and requests to stop."""

from __future__ import annotations

import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.running.attempt import Attempt
from maskgit_core.errors import ArtifactError, WeightsError
from maskgit_core.hints import Execution, Range
from maskgit_core.images.pixels import picture_grid, to_signed, to_uint8, to_unit
from maskgit_core.training.exchange import StopVote
from maskgit_core.training.meters import DivergedError
from maskgit_core.training.tokenizer import Trainer, held_out_scores
from maskgit_core.training.tokenizer_images import TrainingImages
from maskgit_core.training.tokenizer_recipe import Positive


@dataclass(frozen=True)
class Cadence:
    """How a training of a tokenizer is run, which changes nothing but rounding.

    Args:
        log_every, checkpoint_every: steps between journal points, and between checkpoints.
        pictures_every: steps between pictures of reconstructions; 0: only at the end.
        num_workers: threads that read images ahead; 0 suits datasets that are in memory.
        compile: compile the networks.
    """

    log_every: Execution[Positive] = 50
    checkpoint_every: Execution[Positive] = 200
    pictures_every: Execution[Annotated[int, Range(0)]] = 0
    num_workers: Execution[Annotated[int, Range(0, 256)]] = 0
    compile: Execution[bool] = False


class TokenizerRun:
    """Advances a trainer to its last step, seen and saved on the way.

    Args:
        held_BCHW: held-out images in [-1, 1], on the device.
    """

    def __init__(
        self, attempt: Attempt, trainer: Trainer, images: TrainingImages, held_BCHW: Tensor, cadence: Cadence
    ) -> None:
        self.attempt, self.trainer, self.images, self.held_BCHW = attempt, trainer, images, held_BCHW
        self.cadence, self.checkpoint = cadence, attempt.checkpoints / "trainer.pt"
        self.vote = StopVote(trainer.exchange.processes)

    def execute(self) -> None:
        """Goes on from the newest checkpoint, trains to the end; ends early, saved, where a stop is asked for."""
        self._restore()
        trainer, cadence, total = self.trainer, self.cadence, self.trainer.recipe.num_train_steps
        progress = self.attempt.progress(total, unit="step", label="training tokenizer")
        progress.start_at(trainer.step)
        since, seen = time.monotonic(), trainer.step
        for pixels_BCHW in self.images.since(trainer.step):
            meters = trainer.train_step(to_signed(pixels_BCHW.to(self.held_BCHW.device)))
            progress.update()
            step, last = trainer.step, trainer.step == total
            if step % cadence.log_every == 0 or last:
                now = time.monotonic()
                rate = (step - seen) * trainer.recipe.batch_size / max(now - since, 1e-9)
                progress.line(**self._log(meters, rate))
                since, seen = now, step
            self._look(step, last)
            stops = self.vote.agreed(self.attempt.should_stop, step) and not last
            if step % cadence.checkpoint_every == 0 or stops or last:
                self._save()
            if stops:
                self.attempt.stop()
        progress.close()
        drawn = self.attempt.parts / "reconstructions"
        if drawn.is_dir() and self.attempt.is_main:
            shutil.copytree(drawn, self.attempt.files / drawn.name, dirs_exist_ok=True)

    def _log(self, meters: dict[str, Tensor], images_per_s: float) -> dict[str, float]:
        """Logs the newest step's meters; returns those that a line of the log shows."""
        point = {name: float(value) for name, value in meters.items()}
        if not all(map(math.isfinite, point.values())):
            wrong = next(name for name, value in point.items() if not math.isfinite(value))
            raise DivergedError(
                f"train_tokenizer: {wrong} is {point[wrong]} at step {self.trainer.step}; lower train_tokenizer.lr or "
                "disc_weight, or set a longer warmup_steps"
            )
        point["psnr"] = 10 * math.log10(4 / max(point.pop("l2"), 1e-10))
        rate = {"lr": self.trainer.optimizer.param_groups[0]["lr"], "images_per_s": images_per_s}
        self.attempt.log({**point, **rate}, self.trainer.step)
        shown = {"loss": point.get("loss"), "psnr": point["psnr"], **rate}
        return {name: value for name, value in shown.items() if value is not None}

    def _look(self, step: int, last: bool) -> None:
        """Held-out scores and pictures of reconstructions, where they are due."""
        cadence, trainer = self.cadence, self.trainer
        scores = last or (step % (8 * cadence.log_every) == 0 and step > trainer.num_continuous)
        pictures = bool(cadence.pictures_every) and step % cadence.pictures_every == 0
        if not (scores or pictures) or not self.attempt.is_main:
            return
        with trainer.averaged() as tokenizer:
            if scores:
                measured = held_out_scores(tokenizer, self.held_BCHW)
                self.attempt.log({f"held_out_{name}": value for name, value in measured.items()}, step=step)
            if pictures:
                path = self.attempt.parts / "reconstructions" / f"step-{step:09d}.png"
                path.parent.mkdir(exist_ok=True)
                save_picture(self.attempt, path, reconstructions(tokenizer, self.held_BCHW))

    def _save(self) -> None:
        if self.attempt.is_main:
            self.attempt.publish(self.checkpoint, self.trainer.save)
            self.attempt.forget_earlier_checkpoints()

    def _restore(self) -> None:
        """Resumes from the newest checkpoint that can be read; names those that cannot."""
        name = self.checkpoint.name
        for path in (self.checkpoint, *(folder / name for folder in self.attempt.earlier_checkpoints())):
            if path.is_file():
                try:
                    self.trainer.restore(path)
                except WeightsError as error:
                    print(f"warning: {error}; passed over", file=sys.stderr)
                    continue
                self.attempt.resumed_at(self.trainer.step)
                break
        own = torch.tensor([self.trainer.step], device=self.held_BCHW.device)
        steps = self.trainer.exchange.gathered(own).tolist()
        if len(set(steps)) > 1:
            raise ArtifactError(
                f"{self.attempt.folder}: the processes read checkpoints of the steps {steps}; "
                "run again, and look at the disk if it stays so"
            )


@torch.no_grad()
def reconstructions(tokenizer: object, held_BCHW: Tensor) -> np.ndarray:
    """At most 32 held-out images, each above what becomes of it: uint8 HWC."""
    shown = held_BCHW[:32]
    made = tokenizer.decode(tokenizer.encode(shown))  # type: ignore[attr-defined]
    pictures = [to_uint8(to_unit(x)).cpu() for x in (shown.expand(-1, made.shape[1], -1, -1), made)]
    width = 16 if shown.shape[-1] <= 64 else 8
    starts = range(0, len(shown), width)
    rows = [list(half) for start in starts for half in (p[start : start + width] for p in pictures)]
    return picture_grid(rows, scale=max(1, 56 // shown.shape[-1]))


def save_picture(attempt: Attempt, path: Path, picture: np.ndarray) -> None:
    """Publishes a picture as PNG."""

    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    attempt.publish(path, lambda temporary: image.save(temporary, format="PNG"))
