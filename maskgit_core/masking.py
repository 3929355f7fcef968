"""Mask schedules, training masks and the sampler's reveal counts.

A schedule maps progress r in [0, 1] to the mask ratio g(r), decreasing from 1 to 0 (MaskGIT, Chang et al. 2022,
section 3.3 and appendix; arccos: Besnier & Chen 2023). Names differ between code bases; the formulas here are the ones
of the table in `mask_ratio`.

Shapes: B samples, L tokens.
"""

import math
from typing import Literal

import torch

from maskgit_core import rng
from maskgit_core.errors import ConfigError

Schedule = Literal["cosine", "linear", "square", "cubic", "sqrt", "log", "exp", "arccos", "power"]
SCHEDULES: tuple[str, ...] = ("cosine", "linear", "square", "cubic", "sqrt", "log", "exp", "arccos", "power")
_POWERS = {"linear": 1.0, "square": 2.0, "cubic": 3.0, "sqrt": 0.5}


def mask_ratio(progress: torch.Tensor, schedule: str, num_tokens: int, power: float = 1.0) -> torch.Tensor:
    """The mask ratio g(r), in [1e-6, 1], float64, in the shape of `progress`.

    | schedule | g(r) |
    |---|---|
    | cosine | cos(pi r / 2) |
    | arccos | 2 acos(r) / pi |
    | linear, square, cubic, sqrt | 1 - r^X with X = 1, 2, 3, 1/2 |
    | power | 1 - r^power |
    | log | -log2(r) / log2(N) |
    | exp | 1 - 2^(-log2(N) (1 - r)) |

    Args:
        progress: r, in [0, 1].
        num_tokens: N, used by log and exp.
    Raises:
        ConfigError: no such schedule, or power <= 0.
    """
    r = progress.double()
    if schedule == "cosine":
        ratio = torch.cos(r * (math.pi / 2))
    elif schedule == "arccos":
        ratio = torch.acos(r) / (math.pi / 2)
    elif schedule in _POWERS or schedule == "power":
        exponent = _POWERS.get(schedule, power)
        if exponent <= 0:
            raise ConfigError(f"power: {exponent} given to the power schedule; give a number above 0")
        ratio = 1 - r**exponent
    elif schedule == "log":
        ratio = -torch.log2(r.clamp(min=1e-12)) / math.log2(max(num_tokens, 2))
    elif schedule == "exp":
        ratio = 1 - torch.exp2(-math.log2(max(num_tokens, 2)) * (1 - r))
    else:
        raise ConfigError(f"schedule: there is no mask schedule {schedule!r}; one of [{', '.join(SCHEDULES)}]")
    return ratio.clamp(1e-6, 1.0)


def masked_counts(
    unknown_B: torch.Tensor,
    num_steps: int,
    schedule: str,
    power: float = 1.0,
    rounding: Literal["masked_down", "revealed_down"] = "masked_down",
) -> torch.Tensor:
    """How many tokens stay masked after each reveal step: int64 (num_steps, B), each column falling to 0.

    After step t (from 0) of T, with N unknown tokens at the start: min(max(floor(N g((t+1)/T)), 1), N-1-t), and 0 after
    the last: at least one token is revealed per step while there are any. Equals the JAX release and the PyTorch
    MaskGIT on all published settings. `revealed_down` truncates the number of revealed tokens instead, as
    Halton-MaskGIT does: often one more stays masked.
    """
    unknown = unknown_B.long()
    counts = torch.zeros(num_steps, len(unknown), dtype=torch.long, device=unknown.device)
    for n in unknown.unique().tolist():
        progress_T = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
        wanted_T = n * mask_ratio(progress_T, schedule, n, power)
        whole_T = torch.floor(wanted_T + 1e-9) if rounding == "masked_down" else torch.ceil(wanted_T - 1e-9)
        at_most_T = (n - torch.arange(1, num_steps + 1)).clamp(min=0)
        column_T = torch.minimum(whole_T.long().clamp(min=1), at_most_T)
        column_T[-1] = 0
        counts[:, unknown == n] = column_T.to(unknown.device)[:, None]
    return counts


def training_ratios(
    seed: int,
    numbers_B: torch.Tensor,
    schedule: str,
    num_tokens: int,
    *,
    power: float = 1.0,
    samples_per_draw: int = 1,
    min_ratio: float = 0.0,
) -> torch.Tensor:
    """Mask ratios of training samples: float64 (B,), a function of (seed, sample number) alone.

    Args:
        numbers_B: int64, the samples' places in the whole training stream.
        samples_per_draw: 1: a ratio per sample; the global batch size: one ratio per batch.
        min_ratio: smaller ratios are raised to it, as open-muse does.
    """
    seeds_B = rng.sample_seeds(seed, numbers_B // samples_per_draw)
    progress_B = rng.uniforms(seeds_B, rng.RATIO, 1)[:, 0].double()
    return mask_ratio(progress_B, schedule, num_tokens, power).clamp(min=max(min_ratio, 1e-6))


def training_masks(
    seed: int,
    numbers_B: torch.Tensor,
    ratios_B: torch.Tensor,
    num_tokens: int,
    *,
    kind: Literal["exact", "bernoulli"] = "exact",
    rounding: Literal["ceil", "round"] = "ceil",
) -> torch.Tensor:
    """Which tokens are masked: bool (B, L), a function of (seed, sample number) and the ratio.

    `exact` masks ceil(ratio * L) tokens (or the rounded number), at least one; `bernoulli` masks each token with
    probability `ratio`, which may leave none.
    """
    draws_BL = rng.uniforms(rng.sample_seeds(seed, numbers_B), rng.MASK, num_tokens)
    if kind == "bernoulli":
        return draws_BL < ratios_B[:, None]
    wanted_B = ratios_B.double() * num_tokens
    counts_B = torch.ceil(wanted_B - 1e-9) if rounding == "ceil" else torch.round(wanted_B)
    counts_B = counts_B.long().clamp(1, num_tokens)
    ranks_BL = draws_BL.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks_BL < counts_B[:, None]


def dropped_labels(
    seed: int, numbers_B: torch.Tensor, labels_B: torch.Tensor, null_label: int, probability: float
) -> torch.Tensor:
    """Labels with a share `probability` replaced by `null_label` (classifier-free guidance): int64 (B,).

    A function of (seed, sample number) alone; `labels_B` is left as it is.
    """
    draws_B = rng.uniforms(rng.sample_seeds(seed, numbers_B), rng.LABEL_DROP, 1)[:, 0]
    return torch.where(draws_B < probability, null_label, labels_B)
