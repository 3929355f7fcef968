"""The recipe of a training run, and the two schedules that follow from it: learning rate and EMA decay.

Each published implementation is one setting of these switches; see `conf/experiment/` for them by name.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Neutral, Range
from maskgit_core.losses import LossOn
from maskgit_core.masking import Schedule
from maskgit_core.training.muon import Muon

LrSchedule = Literal["constant", "linear", "cosine", "last_tenth"]
LrEndAs = Literal["target", "floor"]
WarmupFrom = Literal["first_step", "zero"]
Optimizer = Literal["adamw", "adam", "nadam", "radam", "adamax", "muon"]
EmaWarmup = Literal["none", "inverse_power", "by_ten", "by_ten_after_first"]
DecayOn = Literal["all", "matrices"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class MaskedRecipe:
    """The keys that every training on masked tokens has; see `Recipe` and `CriticRecipe`.

    Args:
        num_train_steps: optimizer steps.
        batch_size: samples an optimizer step, over all processes.
        lr: highest learning rate; lr_schedule, lr_end, lr_end_as, warmup_steps (linear), warmup_from: see
            `learning_rate`.
        optimizer: `adamw` decouples the weight decay (Loshchilov & Hutter 2019), the others add it to the gradient;
            `muon` (Jordan et al. 2024) is AdamW but for the matrices of the blocks; see `training/muon.py`.
        weight_decay: of all parameters or, with `decay_on: matrices`, not of biases, norms, embeddings.
        betas: of Adam's moments; adam_eps: added to the root of the second.
        grad_clip: largest norm of the gradient; None: no limit.
        label_drop: share of labels replaced by "no class", for classifier-free guidance.
        mask_schedule, mask_schedule_power, mask_kind, mask_rounding, min_mask_ratio: see `masking`.
        mask_ratio_per: whether each sample draws a mask ratio of its own, or the batch one.
        ema_decay: highest decay of the moving average of the weights, None: there is none; ema_warmup, ema_power,
            ema_inv_gamma, ema_count_from: see `ema_decay_at`.
        precision: of the forward pass (autocast); weights and moments are fp32.
        seed: of initial weights, batches, masks, dropped labels and dropout.
    """

    num_train_steps: Annotated[int, Range(1)]
    batch_size: Annotated[int, Range(1)] = 256
    lr: Annotated[float, Range(0.0, low_open=True)] = 1e-4
    lr_schedule: LrSchedule = "cosine"
    lr_end: Annotated[float, Range(0.0)] = 0.0
    warmup_steps: Annotated[int, Range(0)] = 5000
    optimizer: Optimizer = "adamw"
    weight_decay: Annotated[float, Range(0.0)] = 0.045
    decay_on: Annotated[DecayOn, Neutral("all")] = "all"
    betas: Annotated[tuple[float, float], Range(0.0, 1.0, high_open=True)] = (0.9, 0.96)
    grad_clip: Annotated[float | None, Range(0.0, low_open=True)] = 1.0
    label_drop: Annotated[float, Range(0.0, 1.0)] = 0.1
    mask_schedule: Schedule = "cosine"
    mask_schedule_power: Annotated[float, Range(0.0, low_open=True)] = 1.0
    mask_kind: Literal["exact", "bernoulli"] = "exact"
    mask_rounding: Literal["ceil", "round"] = "ceil"
    mask_ratio_per: Literal["sample", "batch"] = "sample"
    min_mask_ratio: Annotated[float, Range(0.0, 1.0, high_open=True)] = 0.0
    ema_decay: Annotated[float | None, Range(0.0, 1.0, high_open=True)] = 0.9999
    ema_warmup: EmaWarmup = "inverse_power"
    precision: Precision = "fp32"
    seed: int = 0
    lr_end_as: Annotated[LrEndAs, Neutral("target")] = "target"
    warmup_from: Annotated[WarmupFrom, Neutral("first_step")] = "first_step"
    adam_eps: Annotated[float, Range(0.0, 1.0, low_open=True), Neutral(1e-8)] = 1e-8
    ema_power: Annotated[float, Range(0.0, low_open=True), Neutral(0.6666666666666666)] = 0.6666666666666666
    ema_inv_gamma: Annotated[float, Range(0.0, low_open=True), Neutral(1.0)] = 1.0
    ema_count_from: Annotated[int, Range(0, 1), Neutral(0)] = 0


@dataclass(frozen=True)
class Recipe(MaskedRecipe):
    """The settings that decide the result of a training run; the fields are config keys of the `train` stage.

    Args:
        label_smoothing: share of the target distribution that is uniform.
        loss_on, unmasked_weight: see `losses.token_weights`.
    """

    label_smoothing: Annotated[float, Range(0.0, 0.99)] = 0.1
    loss_on: LossOn = "masked"
    unmasked_weight: Annotated[float, Range(0.0, 1.0)] = 0.1


@dataclass(frozen=True)
class CriticRecipe(MaskedRecipe):
    """The settings of a critic's training; the fields are config keys of the `train_critic` stage.

    Args:
        temperature: at which the generator draws the tokens that the critic is to find.
    """

    temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0
    # a critic judges all tokens alike, drawn ones and real ones (Lezama et al. 2022, equation 5)
    loss_on: ClassVar[LossOn] = "all"
    unmasked_weight: ClassVar[float] = 1.0


def learning_rate(recipe: MaskedRecipe, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0).

    Linear warm-up over `warmup_steps`, in which step t has (t + 1) / warmup_steps of it (`warmup_from: first_step`) or
    t / warmup_steps (`zero`: the first step changes nothing, as with PyTorch's `LambdaLR`). Then `constant`; `linear`
    or `cosine` down to `lr_end` after the last step; or `last_tenth`: constant until 90 % of the steps, then that
    cosine. `lr_end_as: floor`: the fall is towards 0, but no value is below `lr_end` (Halton-MaskGIT).
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + (recipe.warmup_from == "first_step")) / recipe.warmup_steps
    if recipe.lr_schedule == "constant":
        return recipe.lr
    floor = recipe.lr_end if recipe.lr_end_as == "floor" else 0.0
    target = recipe.lr_end - floor
    begin: float = recipe.warmup_steps
    if recipe.lr_schedule == "last_tenth":
        late = 0.9 * recipe.num_train_steps
        begin = max(begin, late if recipe.lr_end_as == "floor" else math.ceil(late))
    elif recipe.lr_schedule not in ("cosine", "linear"):
        raise ConfigError(
            f"lr_schedule: there is no schedule {recipe.lr_schedule!r}; constant, linear, cosine or last_tenth"
        )
    if step < begin:
        return recipe.lr
    share = min((step - begin) / max(recipe.num_train_steps - begin, 1), 1.0)
    left = 1.0 - share if recipe.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return max(target + (recipe.lr - target) * left, floor)


def ema_decay_at(recipe: MaskedRecipe, step: int) -> float:
    """The EMA decay after optimizer step `step` (from 0), counted as t = step + `ema_count_from`.

    `inverse_power`: 1 - (1 + t / inv_gamma)^(-power) (crowsonkb); `by_ten`: (1 + t) / (10 + t);
    `by_ten_after_first`: that, but the first update copies the weights (diffusers, 1d-tokenizer); all up to
    `ema_decay`. `none`: `ema_decay` from the start.
    """
    limit, t = recipe.ema_decay or 0.0, step + recipe.ema_count_from
    if recipe.ema_warmup == "inverse_power":
        return min(limit, 1.0 - float((1.0 + t / recipe.ema_inv_gamma) ** -recipe.ema_power))
    if recipe.ema_warmup == "by_ten_after_first" and step == 0:
        return 0.0
    if recipe.ema_warmup in ("by_ten", "by_ten_after_first"):
        return min(limit, (1.0 + t) / (10.0 + t))
    if recipe.ema_warmup == "none":
        return limit
    raise ConfigError(
        f"ema_warmup: there is no form {recipe.ema_warmup!r}; none, inverse_power, by_ten or by_ten_after_first"
    )


def is_decayed(name: str, parameter: torch.Tensor, decay_on: str) -> bool:
    """Whether weight decay acts on a parameter.

    `all`: on every one (the PyTorch MaskGIT, Halton-MaskGIT, MaskBit, open-muse); `matrices`: not on biases, norms,
    embeddings, positions and learnt tokens (1d-tokenizer).
    """
    return decay_on == "all" or (parameter.dim() >= 2 and "emb" not in name and "tokens" not in name)


def make_optimizer(
    recipe: MaskedRecipe, parameters: Mapping[str, torch.nn.Parameter], hidden: Collection[str] = ()
) -> torch.optim.Optimizer:
    """AdamW (decoupled decay), Adam or a relative of it over the named parameters, fused where PyTorch can.

    Args:
        hidden: names of the parameters in the model's blocks, whose matrices are Muon's.

    Raises:
        ConfigError: no such optimizer, betas outside [0, 1).
    """
    if len(recipe.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in recipe.betas):
        raise ConfigError(f"betas: {list(recipe.betas)} given; give two numbers in [0, 1), such as [0.9, 0.96]")
    betas = (recipe.betas[0], recipe.betas[1])
    decayed = {name for name, parameter in parameters.items() if is_decayed(name, parameter, recipe.decay_on)}
    muons = {name for name in hidden if parameters[name].dim() == 2} if recipe.optimizer == "muon" else set()
    groups: list[dict[str, Any]] = []
    for decays, muon in ((True, False), (False, False), (True, True), (False, True)):
        names = [name for name in parameters if (name in decayed) == decays and (name in muons) == muon]
        group = {"params": [parameters[name] for name in names], "weight_decay": recipe.weight_decay if decays else 0.0}
        if names:
            groups.append(group | {"muon": True} if muon else group)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, betas=betas, eps=recipe.adam_eps)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.adam_eps, fused=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr, betas=betas, eps=recipe.adam_eps, fused=True)
    relatives: dict[str, Any] = {
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
    }
    if recipe.optimizer not in relatives:
        raise ConfigError(
            f"optimizer: there is no optimizer {recipe.optimizer!r}; adamw, adam, muon, {', '.join(relatives)}"
        )
    made: torch.optim.Optimizer = relatives[recipe.optimizer](groups, lr=recipe.lr, betas=betas, eps=recipe.adam_eps)
    return made


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
