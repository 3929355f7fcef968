"""Muon: what its orthogonalisation gives, and that its trainings resume exactly."""

from __future__ import annotations

import copy

import pytest
import torch

from maskgit_core.training.muon import Muon, orthogonalised
from maskgit_core.training.recipe import Recipe, make_optimizer


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16), (1, 9)])
def test_matrices_become_nearly_orthogonal_and_keep_their_directions(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices_GRC = torch.randn(3, *shape)
    made_GRC = orthogonalised(matrices_GRC)
    values = torch.linalg.svdvals(made_GRC)
    assert made_GRC.shape == matrices_GRC.shape and values.max() < 1.25
    assert values[:, : max(1, min(shape) // 2)].min() > 0.6
    left, _, right = torch.linalg.svd(matrices_GRC, full_matrices=False)
    # in the matrix's own singular basis what comes out is diagonal: only singular values were changed
    inside = left.mT @ made_GRC @ right.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_scale_does_not_matter_and_zero_stays_zero() -> None:
    torch.manual_seed(1)
    matrix_1RC = torch.randn(1, 8, 12)
    assert torch.allclose(orthogonalised(matrix_1RC * 1e4), orthogonalised(matrix_1RC), atol=1e-4)
    assert torch.equal(orthogonalised(torch.zeros(1, 8, 12)), torch.zeros(1, 8, 12))


def made(weight: torch.nn.Parameter, bias: torch.nn.Parameter) -> torch.optim.Optimizer:
    recipe = Recipe(num_train_steps=4, lr=0.1, optimizer="muon", weight_decay=0.0)
    return make_optimizer(recipe, {"weight": weight, "bias": bias}, ["weight", "bias"])


def test_matrices_move_by_muon_and_the_rest_by_adamw() -> None:
    torch.manual_seed(2)
    weight, bias = torch.nn.Parameter(torch.randn(6, 10)), torch.nn.Parameter(torch.randn(6))
    before = weight.detach().clone(), bias.detach().clone()
    optimizer = made(weight, bias)
    weight.grad, bias.grad = torch.randn(6, 10), torch.randn(6)
    optimizer.step()
    moved = (before[0] - weight.detach()) / (0.1 * 0.2 * 10**0.5)
    assert torch.allclose(
        moved, orthogonalised(weight.grad[None])[0], atol=1e-4
    )  # the first momentum is the gradient's
    assert torch.allclose((before[1] - bias.detach()).abs(), torch.full((6,), 0.1), atol=1e-4)
    assert set(optimizer.state[weight]) == {"momentum"} and "exp_avg" in optimizer.state[bias]


def test_a_kernel_is_a_matrix_with_a_row_per_output_channel() -> None:
    torch.manual_seed(3)
    kernel = torch.nn.Parameter(torch.zeros(5, 4, 3, 3))
    optimizer = Muon([{"params": [kernel], "muon": True}], lr=1.0, weight_decay=0.0)
    kernel.grad = torch.randn(5, 4, 3, 3)
    optimizer.step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1)) / (0.2 * 6)
    assert values.max() < 1.25 and values.min() > 0.6


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(4)
    weight, bias = torch.nn.Parameter(torch.randn(6, 10)), torch.nn.Parameter(torch.randn(6))
    gradients = [(torch.randn(6, 10), torch.randn(6)) for _ in range(4)]
    optimizer = made(weight, bias)
    for number, (weight.grad, bias.grad) in enumerate(gradients):
        if number == 2:
            again = torch.nn.Parameter(weight.detach().clone()), torch.nn.Parameter(bias.detach().clone())
            state = copy.deepcopy(optimizer.state_dict())
        optimizer.step()
    continued = made(*again)
    continued.load_state_dict(state)
    for again[0].grad, again[1].grad in gradients[2:]:
        continued.step()
    assert torch.equal(again[0], weight) and torch.equal(again[1], bias)
