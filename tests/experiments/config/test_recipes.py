"""Training recipes: the published ones as overrides alone, their schedules by hand, and what is no recipe."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError
from maskgit_core.models import halton, maskgit, prenorm
from maskgit_core.training.recipe import Recipe, ema_decay_at, is_decayed, learning_rate, make_optimizer

#: What differs from the defaults, which are those of the paper's release.
PUBLISHED = {
    "maskgit": "ema_decay=0.999 ema_warmup=none label_drop=0.0 lr_schedule=constant min_mask_ratio=0.5",
    "pytorch maskgit": "mask_ratio_per=batch label_smoothing=0.1",
    "halton 2023": "loss_on=all mask_kind=bernoulli mask_schedule=arccos weight_decay=1.0e-5 batch_size=512 "
    "ema_decay=null",
    "halton 2025": "loss_on=all mask_kind=bernoulli mask_schedule=arccos label_smoothing=0.0 betas=[0.9,0.999] "
    "weight_decay=0.03 lr_schedule=last_tenth ema_decay=0.999 ema_warmup=none",
    "titok": "loss_on=weighted unmasked_weight=0.1 mask_schedule=arccos mask_rounding=round lr=2.0e-4 "
    "weight_decay=0.03 lr_end=1.0e-5 warmup_steps=10000 batch_size=2048 ema_decay=0.999 "
    "ema_warmup=by_ten_after_first decay_on=matrices",
    "maskbit": "loss_on=all mask_kind=bernoulli mask_schedule=arccos ema_decay=0.999 ema_warmup=by_ten_after_first",
    "open-muse": "mask_rounding=round label_smoothing=0.0 label_drop=0.0 betas=[0.9,0.999] weight_decay=0.01 "
    "lr_schedule=constant ema_decay=null",
}

pytestmark = pytest.mark.usefixtures("composed_once")


def asked(store: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """The training's config and fingerprint."""
    arguments = ["experiment=quickstart", f"paths.store={store}", *(f"train.{text}" for text in overrides)]
    graph = build(arguments, digest=lambda key, value, kind: "0" * 64)
    node = next(node for node in graph.nodes.values() if node.name == "train")
    return dict(node.request.config), node.fingerprint


def recipe(**changed: Any) -> Recipe:
    values: dict[str, Any] = {"num_train_steps": 1000, "batch_size": 8, "lr": 1e-3, "warmup_steps": 10}
    values |= {"weight_decay": 0.1, "ema_decay": 0.999, "ema_warmup": "none"}
    return Recipe(**{**values, **changed})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_a_list_of_overrides(store: Path, name: str) -> None:
    found, fingerprint = asked(store, *PUBLISHED[name].split())
    for text in PUBLISHED[name].split():
        key, _, value = text.partition("=")
        assert found[key] == yaml.safe_load(value)
    assert fingerprint != asked(store)[1]


def test_options_added_later_move_no_training(store: Path) -> None:
    assert asked(store)[1] == asked(store, "decay_on=all", "held_out_share=0.0", "keep_every=null")[1]
    assert asked(store)[1] != asked(store, "decay_on=matrices")[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("betas=[0.9]", r"train.betas: found 1 values; it must be tuple of float, float"),
        ("betas=[0.9,1.0]", r"train.betas: 1 is out of range; allowed: 0 <= betas < 1"),
        ("ema_decay=1.0", r"train.ema_decay: 1 is out of range; allowed: 0 <= ema_decay < 1"),
        ("min_mask_ratio=1.0", r"train.min_mask_ratio: 1 is out of range; allowed: 0 <= min_mask_ratio < 1"),
        ("held_out_share=1.0", r"train.held_out_share: 1 is out of range"),
        ("num_workers=100000", r"train.num_workers: 100000 is out of range; allowed: 0 <= num_workers <= 256"),
        ("decay_on=weights", r"train.decay_on: found 'weights'"),
    ],
)
def test_what_is_no_recipe_is_one_line(store: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        asked(store, override)


def test_learning_rates_are_those_of_the_formulas() -> None:
    cosine = recipe(lr_end=1e-5)
    assert [learning_rate(cosine, step) for step in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])
    half = 10 + (1000 - 10) // 2
    assert learning_rate(cosine, half) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(cosine, 999) == pytest.approx(1e-5, rel=1e-2)
    late = replace(cosine, lr_schedule="last_tenth", lr_end=0.0)
    assert {learning_rate(late, step) for step in (10, 500, 899, 900)} == {1e-3}
    assert learning_rate(late, 950) == pytest.approx(5e-4)
    assert learning_rate(replace(late, lr_schedule="constant"), 999) == 1e-3


def test_moving_averages_are_those_of_the_formulas() -> None:
    assert ema_decay_at(recipe(ema_warmup="inverse_power"), 7) == pytest.approx(1 - 8 ** (-2 / 3))
    assert ema_decay_at(recipe(ema_warmup="by_ten"), 7) == pytest.approx(8 / 17)
    for form in ("inverse_power", "by_ten", "none"):
        assert ema_decay_at(recipe(ema_warmup=form), 10**6) == 0.999


@pytest.mark.parametrize("module", [prenorm, maskgit, halton])
def test_decay_on_matrices_spares_biases_norms_and_embeddings(module: Any) -> None:
    """A step with a gradient of zero shrinks exactly what is decayed."""
    model = module.Model(codebook_size=5, num_tokens=4, num_classes=3, dim=16, num_layers=1, num_heads=2)
    named = dict(model.named_parameters())
    embeddings = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    spared = {n for n, p in named.items() if p.dim() < 2 or n == "pos_emb" or any(p is e for e in embeddings)}
    assert spared == {name for name, parameter in named.items() if not is_decayed(name, parameter, "matrices")}
    for decay_on, decayed in (("all", set(named)), ("matrices", set(named) - spared)):
        optimizer = make_optimizer(recipe(decay_on=decay_on), named)
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        for parameter in named.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in named.items():
            factor = 1 - 1e-3 * 0.1 if name in decayed else 1.0
            assert torch.allclose(parameter, before[name] * factor, atol=0, rtol=1e-6), (decay_on, name)
    assert 0 < len(spared) < len(named) and math.isfinite(sum(float(p.detach().sum()) for p in named.values()))


def test_warm_up_from_zero_and_a_floor_under_the_rate() -> None:
    zero = recipe(warmup_from="zero", lr_schedule="linear", lr_end=1e-4)
    assert [learning_rate(zero, step) for step in (0, 5, 10)] == pytest.approx([0.0, 5e-4, 1e-3])
    assert learning_rate(zero, 505) == pytest.approx(1e-4 + 9e-4 * 0.5) and learning_rate(zero, 1000) == 1e-4
    floor = recipe(lr_schedule="last_tenth", lr_end=1e-5, lr_end_as="floor")
    assert learning_rate(floor, 950) == pytest.approx(0.5e-3)
    assert learning_rate(floor, 999) == 1e-5 < learning_rate(replace(floor, lr_end_as="target"), 998)


def test_the_moving_average_counts_from_where_it_is_told() -> None:
    power = recipe(ema_warmup="inverse_power", ema_power=0.75, ema_inv_gamma=2.0, ema_count_from=1)
    assert ema_decay_at(power, 6) == pytest.approx(1 - (1 + 7 / 2) ** -0.75)
    first = recipe(ema_warmup="by_ten_after_first")
    assert [ema_decay_at(first, step) for step in (0, 1, 2)] == pytest.approx([0.0, 2 / 11, 3 / 12])


@pytest.mark.parametrize("name", ["adamw", "adam", "nadam", "radam", "adamax"])
def test_optimizers_get_what_the_recipe_says(name: str) -> None:
    made = make_optimizer(recipe(optimizer=name, adam_eps=1e-6), dict(torch.nn.Linear(3, 2).named_parameters()))
    assert type(made).__name__.lower() == name
    assert {group["eps"] for group in made.param_groups} == {1e-6} and made.param_groups[0]["betas"] == (0.9, 0.96)
