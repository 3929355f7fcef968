"""The exchange among the processes of one training: sums, means, gathered latents, and whether to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


class StopVote:
    """A request to stop, agreed on by all processes without making any step wait.

    Signals reach processes at different moments, and a process that stops alone leaves the others in a collective for
    ever. Where there are several, each votes every `every` steps; the sum travels while they train and is read at the
    next vote, so all of them see the same outcome at the same step. With one process its own wish counts at once.
    """

    def __init__(self, num_processes: int, every: int = 8) -> None:
        self.num_processes, self.every = num_processes, every
        # votes go by the CPU: reading a GPU tensor would wait for the whole queue of kernels
        self._group: Any = dist.new_group(backend="gloo") if num_processes > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work | None] | None = None

    def agreed(self, wish: bool, step: int) -> bool:
        """True in every process at the same step, once one of them wished to stop; call it after every step."""
        if self.num_processes == 1:
            return wish
        if step % self.every:
            return False
        stop = False
        if self._pending is not None:
            votes, work = self._pending
            if work is not None:
                work.wait()
            stop = votes.item() > 0
        votes = torch.tensor([float(wish)])
        self._pending = (votes, dist.all_reduce(votes, group=self._group, async_op=True))
        return stop
