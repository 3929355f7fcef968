"""Activations computed again in the backward pass: the same weights, bit for bit, from less memory."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from test_compiled_training import CLASSES, NAMES, K, L, batches, recipe

from maskgit_core.training.masked import Masker
from maskgit_core.training.trainer import Trainer


def trained(name: str, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after three steps with dropout in micro-batches, and the bytes kept for the backward pass of one."""
    torch.manual_seed(0)
    facts = {"codebook_size": K, "num_tokens": L, "num_classes": CLASSES}
    model: Any = import_module(f"maskgit_core.models.{name}").Model(
        **facts, dim=32, num_layers=6, num_heads=4, dropout=0.1
    )
    trainer = Trainer(model, recipe("fp32"), "cpu", recompute=recompute)
    masker, stream, kept = Masker(trainer.recipe, K, CLASSES), batches(), 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    for step in range(3):
        pieces = masker.split(next(stream), 2)
        if step == 0:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                trainer._loss(pieces[0])  # looked at, not trained on
        trainer.train_step(pieces)
    return dict(trainer.parameters), kept


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_same_bits_and_less_is_kept(name):
    weights, whole = trained(name, recompute=False)
    again, kept = trained(name, recompute=True)
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert kept < whole / 2, f"{kept:,} of {whole:,} bytes"
