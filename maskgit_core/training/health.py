"""Signs of a training's health: a loss that went wrong."""

import math

from maskgit_core.errors import MaskgitError


class DivergedError(MaskgitError):
    """The loss is not a number or far above that of guessing; the last good checkpoint is kept."""


def check_health(loss: float, grad_norm: float, step: int, codebook_size: int) -> None:
    """Raises `DivergedError` for what is no finite number, or a loss half again as high as that of uniform guessing.

    Args:
        loss: nats a token, mean of the last steps. grad_norm: of step `step`, before clipping.
    """
    guessing = math.log(codebook_size)
    if not math.isfinite(loss) or loss > 1.5 * guessing + 1.0:
        symptom = f"the loss is {loss:.4g} at step {step} (uniform guessing has {guessing:.4g})"
    elif not math.isfinite(grad_norm):
        symptom = f"the norm of the gradient is {grad_norm:.4g} at step {step} (the loss was {loss:.4g})"
    else:
        return
    raise DivergedError(
        f"train: {symptom}; stopped; lower train.lr, or set train.grad_clip or a longer train.warmup_steps"
    )
