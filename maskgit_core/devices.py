"""The device a process computes on: chosen once, by its rank on the machine, and made current in every thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from maskgit_core.errors import ConfigError

_bound: int | None = None  # CUDA index; None on a CPU


def bind_device() -> str:
    """Chooses this process's device and makes it the current one: `cpu`, `cuda:1`, ...

    It is GPU number LOCAL_RANK modulo the number of visible GPUs: right where every process sees all GPUs of its
    machine, and where the site shows each task only its own. MASKGIT_DEVICE (`cpu`, `cuda`, `cuda:1`) overrides.

    Raises:
        ConfigError: MASKGIT_DEVICE names no device, or a GPU that is not visible.
    """
    global _bound
    _bound = None
    asked = os.environ.get("MASKGIT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError(f"MASKGIT_DEVICE: found {asked!r}, which is no device; use cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return asked
    count = torch.cuda.device_count()
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK") or 0) % max(count, 1)
    if index >= count:
        raise ConfigError(f"MASKGIT_DEVICE: found {asked}, but {count} GPUs are visible; use cpu or a GPU below that")
    _bound = index
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def use_bound_device() -> None:
    """Makes the process's GPU the current one of this thread: CUDA starts every thread on GPU 0."""
    if _bound is not None:
        torch.cuda.set_device(_bound)


@contextlib.contextmanager
def products(precision: str, device: str) -> Iterator[None]:
    """How matrix products and convolutions are computed for as long as this lasts, whatever PyTorch's defaults are.

    PyTorch lets convolutions on GPUs use TF32 (10 bits of mantissa) unless it is told otherwise.

    Args:
        precision: `fp32`, `tf32` (fp32 tensors, TF32 products on GPUs) or `bf16` (autocast).
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
