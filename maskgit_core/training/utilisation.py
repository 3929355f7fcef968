"""How much of a machine's matrix rate a training uses: operations counted, and the rate to hold them against.

Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B): operations that forward and backward need by the
model's own formula, whatever is really computed, over what the device could do in that time.

Shapes: L tokens, D width.
"""

import time
from functools import cache
from typing import Any

import torch

from maskgit_core.layers.transformer import block_width

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def operations_per_token(model: Any) -> float:
    """Operations of forward and backward for one image token of a `Model`.

    Six per parameter of the blocks and token (Kaplan et al. 2020), and 12 L D per block for the two products of
    attention. Embeddings cost nothing and logits are computed at masked places only: neither is counted.
    """
    weights = sum(parameter.numel() for block in model.blocks for parameter in block.parameters())
    return float(6 * weights + 12 * model.num_tokens * block_width(model) * len(model.blocks))


@cache
def matrix_rate(device: str, precision: str) -> float:
    """Operations per second of square matrix products on this device, measured once per process: the best of a few.

    Args:
        device: "cpu" or "cuda". precision: fp32, bf16 or fp16.
    """
    on_cpu = torch.device(device).type == "cpu"
    size, rounds = (512, 3) if on_cpu else (8192, 8)
    # random values: processors run faster on equal ones, which need less power, and no training multiplies those
    draws = torch.Generator().manual_seed(0)
    factor = torch.randn(size, size, generator=draws).to(device=device, dtype=DTYPES[precision])
    factor @ factor
    best = float("inf")
    for _ in range(rounds):
        _wait(on_cpu)
        began = time.perf_counter()
        factor @ factor
        _wait(on_cpu)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def _wait(on_cpu: bool) -> None:
    if not on_cpu:
        torch.cuda.synchronize()
