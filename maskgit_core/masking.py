"""Mask schedules, training masks and the sampler's reveal counts.

A schedule maps progress r in [0, 1] to the mask ratio g(r), decreasing from 1 to 0 (MaskGIT, Chang et al. 2022,
section 3.3 and appendix; arccos: Besnier & Chen 2023). Names differ between code bases; the formulas here are the ones
of the table in `mask_ratio`.

Shapes: B samples, L tokens.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch

from maskgit_core import rng
from maskgit_core.errors import ConfigError

Schedule = Literal["cosine", "linear", "square", "cubic", "sqrt", "log", "exp", "arccos", "power"]
SCHEDULES: tuple[str, ...] = ("cosine", "linear", "square", "cubic", "sqrt", "log", "exp", "arccos", "power")
#: How a schedule's ratio becomes a number of tokens; see `masked_counts`.
Rounding = Literal["masked_down", "revealed_down", "maskgit_jax", "maskgit_pytorch", "halton_2025", "halton_2023"]
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
    rounding: Rounding = "masked_down",
) -> torch.Tensor:
    """How many tokens stay masked after each reveal step: int64 (num_steps, B), each column falling to 0.

    With N unknown tokens at the start, after step t (from 0) of T:

    | rounding | tokens still masked |
    |---|---|
    | masked_down | floor(N g((t+1)/T)) |
    | revealed_down | N - floor(N (1 - g((t+1)/T))) |
    | maskgit_pytorch | as `masked_down`, with the rounding errors of float64 (the PyTorch MaskGIT) |
    | maskgit_jax | as `masked_down`, every operation rounded to float32 in the JAX release's order |
    | halton_2025 | as `revealed_down`, every operation rounded to float32 in Halton-MaskGIT's order |
    | halton_2023 | step t reveals round(N h_t / sum h), h_t = g(1 - t/(T-1)), float32 (Halton-MaskGIT, 2023) |

    and in all of them at least 1 (`maskgit_pytorch`: 0), at most N-1-t (`maskgit_jax`: at most one fewer than after
    the step before), and 0 after the last step: at least one token is revealed per step while there are any. Rounding
    decides where N g is a whole number: cosine, N = 1,024, T = 12 leaves 512 tokens after step 8, 511 in float32.
    """
    unknown = unknown_B.long()
    counts = torch.zeros(num_steps, len(unknown), dtype=torch.long, device=unknown.device)
    for n in unknown.unique().tolist():
        whole_T = _WANTED[rounding](n, num_steps, schedule, power).long()
        if rounding == "maskgit_jax":
            column_T = _one_fewer_each_step(whole_T, n)
        else:
            at_most_T = (n - torch.arange(1, num_steps + 1)).clamp(min=0)
            column_T = torch.minimum(whole_T.clamp(min=0 if rounding == "maskgit_pytorch" else 1), at_most_T)
        column_T[-1] = 0
        counts[:, unknown == n] = column_T.to(unknown.device)[:, None]
    return counts


def _one_fewer_each_step(wanted_T: torch.Tensor, n: int) -> torch.Tensor:
    """Numbers in [1, N] of which each is below the one before, as far as 1 allows, and at most what was wanted."""
    counts, before = [], n
    for wanted in wanted_T.tolist():
        before = min(max(1, min(before - 1, wanted)), n)
        counts.append(before)
    return torch.tensor(counts)


def _progress(num_steps: int) -> torch.Tensor:
    return torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps


def _masked_down(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    return torch.floor(n * mask_ratio(_progress(num_steps), schedule, n, power) + 1e-9)


def _revealed_down(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    return torch.ceil(n * mask_ratio(_progress(num_steps), schedule, n, power) - 1e-9)


def _maskgit_pytorch(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    return torch.floor(mask_ratio(_progress(num_steps), schedule, n, power) * n)


def _maskgit_jax(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    ratio_T = _float32_ratio(_progress(num_steps).float(), schedule, n, power)
    return torch.floor((n * ratio_T).float())


def _halton_2025(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    revealed_T = 1 - _float32_ratio(_progress(num_steps).float(), schedule, n, power)
    return n - torch.floor(revealed_T * n)


def _halton_2023(n: int, num_steps: int, schedule: str, power: float) -> torch.Tensor:
    shares_T = _float32_ratio(torch.linspace(1, 0, num_steps), schedule, n, power, least=0.0)
    revealed_T = (shares_T / shares_T.sum().clamp(min=1e-12) * n).round().clamp(min=1)
    return n - revealed_T.double().cumsum(0)


_WANTED: dict[str, Callable[[int, int, str, float], torch.Tensor]] = {
    "masked_down": _masked_down,
    "revealed_down": _revealed_down,
    "maskgit_pytorch": _maskgit_pytorch,
    "maskgit_jax": _maskgit_jax,
    "halton_2025": _halton_2025,
    "halton_2023": _halton_2023,
}


def _float32_ratio(
    progress_T: torch.Tensor, schedule: str, num_tokens: int, power: float, least: float = 1e-6
) -> torch.Tensor:
    """g(r) with every operation rounded to float32, in the order in which the published code writes it.

    Functions are computed in float64 and rounded, so that no processor's float32 approximation shows.
    """
    r = progress_T.float()
    half_pi = torch.tensor(math.pi / 2, dtype=torch.float32)
    if schedule == "cosine":
        ratio = (half_pi * r).double().cos().float()
    elif schedule == "arccos":
        ratio = r.double().acos().float() / half_pi
    elif schedule == "log":
        ratio = -_float32_log2(r.clamp(min=1e-12)) / _float32_log2(torch.tensor(float(max(num_tokens, 2))))
    elif schedule == "exp":
        exponent = -_float32_log2(torch.tensor(float(max(num_tokens, 2)))) * (1 - r)
        ratio = 1 - exponent.double().exp2().float()
    else:
        ratio = 1 - (1 - mask_ratio(r, schedule, num_tokens, power)).float()
    return ratio.clamp(least, 1.0)


def _float32_log2(x: torch.Tensor) -> torch.Tensor:
    """log2 as JAX has it: a quotient of two natural logarithms."""
    return x.double().log().float() / torch.tensor(math.log(2), dtype=torch.float32)


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
    is_early_BL = torch.arange(num_tokens) < exact_counts(ratios_B, num_tokens, rounding)[:, None]
    order_BL = draws_BL.argsort(dim=1, stable=True)
    return torch.zeros_like(is_early_BL).scatter_(1, order_BL, is_early_BL)


def exact_counts(ratios_B: torch.Tensor, num_tokens: int, rounding: Literal["ceil", "round"] = "ceil") -> torch.Tensor:
    """How many tokens `exact` masks at each ratio: int64 (B,)."""
    wanted_B = ratios_B.double() * num_tokens
    counts_B = torch.ceil(wanted_B - 1e-9) if rounding == "ceil" else torch.round(wanted_B)
    return counts_B.long().clamp(1, num_tokens)


def dropped_labels(
    seed: int, numbers_B: torch.Tensor, labels_B: torch.Tensor, null_label: int, probability: float
) -> torch.Tensor:
    """Labels with a share `probability` replaced by `null_label` (classifier-free guidance): int64 (B,).

    A function of (seed, sample number) alone; `labels_B` is left as it is.
    """
    draws_B = rng.uniforms(rng.sample_seeds(seed, numbers_B), rng.LABEL_DROP, 1)[:, 0]
    return torch.where(draws_B < probability, null_label, labels_B)
