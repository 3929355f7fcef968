"""`python two_gpus.py NOTES ARGUMENTS...`: runs `maskgit ARGUMENTS` in a process that believes to have two GPUs.

Tensors stay on the CPU; every device that torch is asked for, and every thread that makes a GPU its current one, is
written to NOTES as JSON. Set MASKGIT_DEVICE or LOCAL_RANK to choose the GPU.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch

NUM_GPUS = 2
FACTORIES = ("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "rand", "randn", "randint")
asked: set[str] = set()
current: set[tuple[str, str]] = set()
real_device = torch.device


def on_cpu(value: Any) -> Any:
    """`value`, or the CPU in place of a GPU, which is noted."""
    if isinstance(value, str | real_device) and str(value).startswith("cuda"):
        asked.add(str(value))
        return real_device("cpu")
    return value


def redirected(function: Any) -> Any:
    """`function` with every GPU among its arguments replaced."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(on_cpu, args), **{name: on_cpu(value) for name, value in kwargs.items()})

    return call


def pretend() -> None:
    """From here on torch seems to have two GPUs."""
    torch.Tensor.to = redirected(torch.Tensor.to)
    torch.Tensor.pin_memory = lambda self, device=None: self
    for name in FACTORIES:
        setattr(torch, name, redirected(getattr(torch, name)))
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: NUM_GPUS
    cuda.set_device = lambda index: current.add((threading.current_thread().name, str(index)))
    cuda.get_device_name = lambda index=0: f"pretended GPU {index}"
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.synchronize = lambda *args: None
    cuda.manual_seed_all = lambda seed: None
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None


def main() -> int:
    """Runs the command and writes the notes."""
    pretend()
    from experiments import cli

    try:
        return cli.main(sys.argv[2:])
    finally:
        notes = {"asked": sorted(asked), "current": sorted(current)}
        Path(sys.argv[1]).write_text(json.dumps(notes))


if __name__ == "__main__":
    sys.exit(main())
