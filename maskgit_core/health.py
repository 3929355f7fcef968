"""Signs of a training's health: a loss that went wrong."""

import math

from maskgit_core.errors import MaskgitError


class DivergedError(MaskgitError):
    """The loss is not a number or far above that of guessing; the last good checkpoint is kept."""


def check_loss(loss: float, step: int, codebook_size: int) -> None:
    """Raises `DivergedError` for a loss that is not finite, or half again as high as that of uniform guessing."""
    limit = 1.5 * math.log(codebook_size) + 1.0
    if math.isfinite(loss) and loss <= limit:
        return
    raise DivergedError(
        f"train: the loss is {loss:.4g} at step {step} (uniform guessing has {math.log(codebook_size):.4g}); stopped; "
        "lower train.lr, or set train.grad_clip or a longer train.warmup_steps"
    )
