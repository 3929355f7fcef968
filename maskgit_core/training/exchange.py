"""Sums, means and gathered latents over the processes of one training; in one process, the values themselves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """Exchange between the processes of a step; all must make the same calls in the same order.

    Attributes:
        rank, processes: of this training; 0 and 1 where there is no process group.
    """

    def __init__(self) -> None:
        self.on = dist.is_available() and dist.is_initialized()
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if self.on else (0, 1)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if self.processes > 1:
            value = value.contiguous().clone()
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.total(value) / self.processes if self.processes > 1 else value

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks; each has equally many."""
        if self.processes == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.processes)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def first(self, value: Tensor) -> Tensor:
        """The value of process 0."""
        if self.processes > 1:
            value = value.contiguous().clone()
            dist.broadcast(value, 0)
        return value

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces gradients by their mean over processes, in one exchange."""
        if self.processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.processes
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool, device: str) -> bool:
        """True where any process votes yes."""
        if self.processes == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=device)))
