"""Activations computed again in the backward pass: the same weights, bit for bit, from less memory."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from test_compiled_training import CLASSES, NAMES, K, L, batches, recipe

from maskgit_core.training.masked import Masker
from maskgit_core.training.trainer import TokenLoss, Trainer


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


def test_logits_of_a_large_codebook_are_made_a_part_at_a_time():
    """The same loss, meters and gradients but for rounding, and no whole array of logits is kept."""
    torch.manual_seed(0)
    size = 8192
    facts = {"codebook_size": size, "num_tokens": L, "num_classes": CLASSES}
    model: Any = import_module("maskgit_core.models.prenorm").Model(
        **facts, dim=32, num_layers=1, num_heads=4, dropout=0.0
    )
    [piece] = Masker(recipe("fp32"), size, CLASSES).split(next(batches()), 1)
    found, kept = [], []
    for rows in (None, 10):
        loss_of, largest = TokenLoss(model, 0.1, rows), 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            largest = max(largest, tensor.numel())
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, sums = loss_of(piece)
        loss.backward()
        found.append([sums, *(parameter.grad.clone() for parameter in model.parameters())])
        kept.append(largest)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    count = len(piece.places_M)
    assert count > 20 and kept[0] >= count * size and kept[1] < count * size
