"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon/ ; with the scale of Liu et al. 2025 (https://arxiv.org/abs/2502.16982), by
which one learning rate and one weight decay serve Muon and AdamW. What is no hidden matrix (embeddings, norms, biases,
the first and the last layer) is AdamW's.

G matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Of the quintic iteration: the steepest at zero whose singular values stay within about [0.7, 1.2].
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: Root mean square of an AdamW step's entries, per learning rate, that Muon's steps are scaled to (Liu et al. 2025).
_ADAMW_RMS = 0.2


def orthogonalised(matrices_GRC: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T: (G, R, C) to the same shape, singular values within about [0.7, 1.2].

    Singular values below about a thousandth of the matrix's norm are not brought up that far in 5 iterations.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices_GRC.shape[1] > matrices_GRC.shape[2]
    x_GRC: Tensor = matrices_GRC.mT if tall else matrices_GRC
    x_GRC = x_GRC / x_GRC.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram_GRR = x_GRC @ x_GRC.mT
        x_GRC = a * x_GRC + (b * gram_GRR + c * gram_GRR @ gram_GRR) @ x_GRC
    return x_GRC.mT if tall else x_GRC


class Muon(torch.optim.AdamW):
    """AdamW, but for parameter groups with `muon=True`, whose parameters are matrices or convolutions' kernels.

    A kernel counts as a matrix with a row for each output channel. The state of a matrix is `momentum`, that of all
    others AdamW's.

    Args:
        groups: parameter groups of dictionaries, as of any optimizer; `muon` in a group is False where it is absent.
        momentum: of the Nesterov momentum of the matrices.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, **adamw: Any) -> None:
        super().__init__([{"muon": False, **group} for group in groups], **adamw)
        self.momentum = momentum

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # Adam's own looks for its state in every parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all groups."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        alike: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for (rows, columns), parameters in alike.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            momenta = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            ahead = torch._foreach_lerp(gradients, momenta, self.momentum)
            steps_GRC = orthogonalised(torch.stack([step.reshape(rows, columns) for step in ahead]).float())
            scale = group["lr"] * _ADAMW_RMS * math.sqrt(max(rows, columns))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, step_RC in zip(parameters, steps_GRC, strict=True):
                parameter.sub_(step_RC.reshape(parameter.shape), alpha=scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum
