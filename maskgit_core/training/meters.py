"""A training's measurements of itself, and the signs that it went wrong."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from maskgit_core.errors import MaskgitError
from maskgit_core.training.masked import NUM_BUCKETS


class DivergedError(MaskgitError):
    """The loss is not a number or far above that of guessing; the last good checkpoint is kept."""


def check_health(loss: float, grad_norm: float, step: int, num_choices: int) -> None:
    """Raises `DivergedError` for what is no finite number, or a loss half again as high as that of uniform guessing.

    Args:
        loss: nats a token, mean of the last steps. grad_norm: of step `step`, before clipping.
        num_choices: answers among which one guesses: the codebook, or 2 of a critic.
    """
    guessing = math.log(num_choices)
    if not math.isfinite(loss) or loss > 1.5 * guessing + 1.0:
        symptom = f"the loss is {loss:.4g} at step {step} (uniform guessing has {guessing:.4g})"
    elif not math.isfinite(grad_norm):
        symptom = f"the norm of the gradient is {grad_norm:.4g} at step {step} (the loss was {loss:.4g})"
    else:
        return
    raise DivergedError(
        f"train: {symptom}; stopped; lower train.lr, or set train.grad_clip or a longer train.warmup_steps"
    )


@torch.no_grad()
def meter_sums(
    loss: torch.Tensor, right_M: torch.Tensor, counted_M: torch.Tensor, buckets_M: torch.Tensor
) -> torch.Tensor:
    """The sums that `Meters` adds up over micro-batches: (2 + 2 * buckets,).

    Args:
        loss: its part of the step's.
        right_M, counted_M: float32, right answers and those that count, of M tokens.
        buckets_M: int64 quarter of the mask ratio.
    """
    by_bucket = torch.zeros(2, NUM_BUCKETS, device=right_M.device)
    by_bucket.index_add_(1, buckets_M, torch.stack([right_M, counted_M]))
    return torch.cat([loss.detach()[None], loss.new_ones(1), by_bucket.flatten()])


class Meters:
    """Sums kept on the device between two log intervals."""

    def __init__(self, accelerator: Accelerator, accuracy: str = "masked_accuracy") -> None:
        self._accelerator, self.accuracy = accelerator, accuracy
        self._sums: torch.Tensor | None = None
        self._steps = 0
        self.grad_norm: torch.Tensor | float | None = None

    def add(self, sums: torch.Tensor, *, is_new_step: bool) -> None:
        """Adds one micro-batch's sums."""
        self._steps += is_new_step
        self._sums = sums if self._sums is None else self._sums + sums

    def totals(self) -> dict[str, Any] | None:
        """Sums since the last `read`, over all processes: plain data; None for nothing.

        Every process must call it; waits for the device.
        """
        if self._sums is None:
            return None
        sums = self._sums
        if self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, reduction="sum")  # makes a new tensor
        return {"sums": sums.tolist(), "steps": self._steps}

    def restore(self, totals: Mapping[str, Any] | None) -> None:
        """Goes on from `totals`, so that what is read next is what it would have been without a stop between."""
        self._sums, self._steps = None, 0
        if totals is not None:
            sums = torch.tensor(totals["sums"], device=self._accelerator.device)
            self._sums, self._steps = sums * float(self._accelerator.is_main_process), int(totals["steps"])

    def read(self) -> dict[str, float]:
        """Metrics since the last call, over all processes (every process must call it); waits for the device.

        Keys: loss (nats a weighted token, mean of the steps), masked_accuracy (or what the loss calls it) in [0, 1],
        masked_accuracy_q1 ... q4 by quarter of the mask ratio (where there were tokens), grad_norm (of the last step,
        before clipping).
        """
        totals = self.totals()
        if totals is None:
            return {}
        values = totals["sums"]
        right, hidden = values[2 : 2 + NUM_BUCKETS], values[2 + NUM_BUCKETS :]
        metrics = {"loss": values[0] / totals["steps"]}
        metrics[self.accuracy] = sum(right) / max(sum(hidden), 1.0)
        for number in range(NUM_BUCKETS):
            if hidden[number]:
                metrics[f"{self.accuracy}_q{number + 1}"] = right[number] / hidden[number]
        if self.grad_norm is not None:
            metrics["grad_norm"] = float(self.grad_norm)
        self._sums, self._steps = None, 0
        return metrics
