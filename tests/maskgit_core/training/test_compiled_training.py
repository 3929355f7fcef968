"""Compiled blocks: every model trains with dropout, and evaluation at many shapes in between compiles nothing."""

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgit_core.models
from maskgit_core import rng
from maskgit_core.batches.tokens import Batch
from maskgit_core.samplers.confidence import Sampler
from maskgit_core.training.masked import Masker
from maskgit_core.training.recipe import Recipe
from maskgit_core.training.trainer import Trainer

NAMES = sorted(p.stem for p in Path(maskgit_core.models.__path__[0]).glob("*.py") if p.stem != "__init__")
K, L, CLASSES = 32, 16, 5


def recipe(precision: str) -> Recipe:
    return Recipe(
        num_train_steps=100, batch_size=10, lr=1e-2, lr_schedule="constant", lr_end=0.0, warmup_steps=0,
        optimizer="adamw", weight_decay=0.0, betas=(0.9, 0.96), grad_clip=1.0, label_drop=0.1, label_smoothing=0.0,
        loss_on="masked", unmasked_weight=0.1, mask_schedule="cosine", mask_schedule_power=1.0, mask_kind="exact",
        mask_rounding="ceil", mask_ratio_per="sample", min_mask_ratio=0.0, ema_decay=0.9, ema_warmup="none",
        precision=precision, seed=0,
    )  # fmt: skip


def batches() -> Iterator[Batch]:
    """Samples of which every token is the class: a model with dropout learns them in a few steps."""
    start = 0
    while True:
        places = torch.arange(start, start + 10)
        labels = places % CLASSES
        yield Batch(labels[:, None].expand(-1, L).contiguous(), labels, places, places, places)
        start += 10


def losses(name: str, precision: str, dropout: float, compiled: bool, num_steps: int) -> list[float]:
    torch.manual_seed(0)
    facts = {"codebook_size": K, "num_tokens": L, "num_classes": CLASSES}
    model: Any = import_module(f"maskgit_core.models.{name}").Model(
        **facts, dim=32, num_layers=3, num_heads=4, dropout=dropout
    )
    trainer = Trainer(model, recipe(precision), "cpu", compiled)
    masker, stream, found = Masker(trainer.recipe, K, CLASSES), batches(), []
    for step in range(num_steps):
        trainer.train_step(masker.split(next(stream), 3))  # micro-batches of 4, 3 and 3
        found.append(trainer.meters.read()["loss"])
        if step % 5 == 0:
            with trainer.averaged() as averaged, trainer.accelerator.autocast():
                for count in range(2, 12):  # more shapes than a compiler would take
                    seeds, labels = rng.sample_seeds(0, torch.arange(count)), torch.arange(count) % CLASSES
                    tokens = Sampler(num_steps=4, guidance_scale=2.0).sample(
                        averaged, labels, grid=(4, 4), seeds_B=seeds
                    )
                    assert tokens.max() < K
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_trains_compiled(name: str, precision: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no compiler here")
    plain, compiled = (losses(name, precision, 0.0, on, 6) for on in (False, True))
    assert plain == pytest.approx(compiled, abs=1e-4 if precision == "fp32" else 3e-2)
    with_dropout = losses(name, precision, 0.1, True, 30)
    assert with_dropout[0] > 2.5 and sum(with_dropout[-5:]) / 5 < 0.7 * with_dropout[0]
