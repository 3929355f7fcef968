"""A training divided among its processes: each holds a part of weights, gradients, moments and moving average.

Fully sharded data parallelism (Zhao et al. 2023, https://arxiv.org/abs/2304.11277) as PyTorch has it (`fully_shard`),
a block at a time, so that whole weights exist for one block only. accelerate's own plugin knows no processes on CPUs,
where equality with an undivided training is tested; its process group, precision and gradient scaling are used as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(root: nn.Module, blocks: Iterable[nn.Module], device: str) -> None:
    """Divides the parameters of each block, and what `root` has besides, among all processes of the training.

    Args:
        root: the module whose forward pass is called.
        device: "cpu", "cuda:0", ...
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)


def exchange_gradients(root: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass shares its gradients: of several micro-batches only the last one does."""
    root.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part (all must call it), or the tensor itself."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def wholes(tensors: Mapping[str, Tensor], is_kept: bool) -> dict[str, Tensor]:
    """Copies of whole tensors in CPU memory, put together one after the other; none where they are not to be kept."""
    copies: dict[str, Tensor] = {}
    for name, value in tensors.items():
        complete = whole(value.detach())
        if is_kept:
            copies[name] = complete.to("cpu", copy=True)
    return copies


def parts(complete: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Tensor]:
    """This process's parts of whole tensors, divided as those of the same names in `like` are."""
    return {name: part(value, like[name]) for name, value in complete.items()}


def part(complete: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return complete
    placed = complete.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(placed, like.device_mesh, like.placements)
