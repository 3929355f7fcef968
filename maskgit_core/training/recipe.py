"""What a training run was asked for, and the two schedules that follow from it: learning rate and EMA decay.

Each published implementation is one setting of these switches; see `conf/experiment/` for them by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from maskgit_core.errors import ConfigError

LrSchedule = Literal["constant", "cosine", "last_tenth"]
EmaWarmup = Literal["none", "inverse_power", "by_ten"]
DecayOn = Literal["all", "matrices"]


@dataclass(frozen=True)
class Recipe:
    """A training run; the keywords, defaults and meanings are those of the `train` stage."""

    num_train_steps: int
    batch_size: int
    lr: float
    lr_schedule: str
    lr_end: float
    warmup_steps: int
    optimizer: str
    weight_decay: float
    betas: tuple[float, float]
    grad_clip: float | None
    label_drop: float
    label_smoothing: float
    loss_on: str
    unmasked_weight: float
    mask_schedule: str
    mask_schedule_power: float
    mask_kind: Literal["exact", "bernoulli"]
    mask_rounding: Literal["ceil", "round"]
    mask_ratio_per: str
    min_mask_ratio: float
    ema_decay: float | None
    ema_warmup: str
    precision: str
    seed: int
    decay_on: DecayOn = "all"


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0).

    Linear warm-up over `warmup_steps`, then `constant`, `cosine` down to `lr_end` at the last step, or `last_tenth`:
    constant until 90 % of the steps, then that cosine.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    if recipe.lr_schedule == "constant":
        return recipe.lr
    begin = recipe.warmup_steps
    if recipe.lr_schedule == "last_tenth":
        begin = max(begin, math.ceil(0.9 * recipe.num_train_steps))
    elif recipe.lr_schedule != "cosine":
        raise ConfigError(f"lr_schedule: there is no schedule {recipe.lr_schedule!r}; constant, cosine or last_tenth")
    if step < begin:
        return recipe.lr
    share = min((step - begin) / max(recipe.num_train_steps - begin, 1), 1.0)
    return recipe.lr_end + (recipe.lr - recipe.lr_end) * 0.5 * (1.0 + math.cos(math.pi * share))


def ema_decay_at(recipe: Recipe, step: int) -> float:
    """The EMA decay after optimizer step `step` (from 0).

    `inverse_power`: 1 - (1 + t)^(-2/3) (crowsonkb); `by_ten`: (1 + t) / (10 + t) (diffusers, 1d-tokenizer); both up to
    `ema_decay`. `none`: `ema_decay` from the start.
    """
    limit = recipe.ema_decay or 0.0
    if recipe.ema_warmup == "inverse_power":
        return min(limit, 1.0 - float((1.0 + step) ** (-2.0 / 3.0)))
    if recipe.ema_warmup == "by_ten":
        return min(limit, (1.0 + step) / (10.0 + step))
    if recipe.ema_warmup == "none":
        return limit
    raise ConfigError(f"ema_warmup: there is no form {recipe.ema_warmup!r}; none, inverse_power or by_ten")


def is_decayed(name: str, parameter: torch.Tensor, decay_on: str) -> bool:
    """Whether weight decay acts on a parameter.

    `all`: on every one (the PyTorch MaskGIT, Halton-MaskGIT); `matrices`: not on biases, norms, embeddings, positions
    and learnt tokens (1d-tokenizer, MaskBit, open-muse).
    """
    return decay_on == "all" or (parameter.dim() >= 2 and "emb" not in name and "tokens" not in name)


def make_optimizer(recipe: Recipe, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Fused AdamW (decoupled decay) or Adam over the named parameters.

    Raises:
        ConfigError: no such optimizer, betas outside [0, 1).
    """
    if len(recipe.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in recipe.betas):
        raise ConfigError(f"betas: {list(recipe.betas)} given; give two numbers in [0, 1), such as [0.9, 0.96]")
    betas = (recipe.betas[0], recipe.betas[1])
    decayed = {name for name, parameter in parameters.items() if is_decayed(name, parameter, recipe.decay_on)}
    groups = [
        {"params": [parameters[name] for name in parameters if name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [parameters[name] for name in parameters if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr, betas=betas, fused=True)
    raise ConfigError(f"optimizer: there is no optimizer {recipe.optimizer!r}; adamw or adam")


class Ema:
    """An exponential moving average of parameters, kept in their precision and on their device."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.Tensor], decay: float) -> None:
        """average = decay * average + (1 - decay) * parameter, in one fused call."""
        torch._foreach_lerp_(list(self.averages.values()), [p.detach() for p in parameters.values()], 1.0 - decay)

    @torch.no_grad()
    def distance(self, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Relative distance |average - parameters| / |parameters|: a scalar tensor."""
        current = [p.detach() for p in parameters.values()]
        differences = torch._foreach_sub(list(self.averages.values()), current)
        norms = [torch.stack(torch._foreach_norm(group)).norm() for group in (differences, current)]
        distance: torch.Tensor = norms[0] / norms[1].clamp(min=1e-12)
        return distance
