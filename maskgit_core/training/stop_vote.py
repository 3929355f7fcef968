"""A request to stop, agreed on by all processes of a training run without making any step wait.

Signals reach processes at different moments, and a process that stops alone leaves the others in a collective for ever.
Each process votes every few steps; the sum travels while they train and is read at the next vote, so all of them see
the same outcome at the same step.
"""

from typing import Any

import torch
import torch.distributed as dist


class StopVote:
    """Votes every `every` steps where there are several processes; with one process its own wish counts at once."""

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
