"""Classifier-free guidance: `uncond + s * (cond - uncond)`, and how s grows while sampling.

Papers that write `(1 + w) * cond - w * uncond` mean s = 1 + w; papers that write `cond + s * (cond - uncond)` mean
s + 1 here. Conversions are in the configs.
"""

import math
from typing import Literal

import torch

from maskgit_core.errors import ConfigError

GuidanceSchedule = Literal["constant", "linear", "linear-to-last", "linear-r", "power-cosine", "exponential"]
GUIDANCE_SCHEDULES: tuple[str, ...] = (
    "constant",
    "linear",
    "linear-to-last",
    "linear-r",
    "power-cosine",
    "exponential",
)


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """`uncond + scale * (cond - uncond)`; logits of any equal shapes, a scale that fits them."""
    return torch.lerp(uncond, cond, scale)


def guidance_scale(
    schedule: str, scale: float, step: int, num_steps: int, revealed: float, power: float = 2.5
) -> float:
    """The scale s_t at reveal step t (from 0) of T.

    | schedule | s_t |
    |---|---|
    | constant | s |
    | linear | 1 + (s - 1) t / T |
    | linear-to-last | 1 + (s - 1) t / (T - 1) (Halton-MaskGIT's first version) |
    | linear-r | 1 + (s - 1) * revealed |
    | power-cosine | 1 + (s - 1) (1 - cos(pi (t / T)^power)) / 2 |
    | exponential | 1 + (s - 1) (exp(power t / T) - 1) / (exp(power) - 1) |

    Args:
        revealed: share of the tokens, in [0, 1], that are known *after* this step; (N - n_t) / N.
    Raises:
        ConfigError: no such schedule.
    """
    if schedule == "constant":
        return scale
    if schedule == "linear":
        share = step / num_steps
    elif schedule == "linear-to-last":
        share = step / max(num_steps - 1, 1)
    elif schedule == "linear-r":
        share = revealed
    elif schedule == "power-cosine":
        share = (1 - math.cos(math.pi * (step / num_steps) ** power)) / 2
    elif schedule == "exponential":
        share = math.expm1(power * step / num_steps) / math.expm1(power)
    else:
        names = ", ".join(GUIDANCE_SCHEDULES)
        raise ConfigError(f"guidance_schedule: there is no schedule {schedule!r}; one of [{names}]")
    return 1.0 + (scale - 1.0) * share
