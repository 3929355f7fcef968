"""Dropout that is cheap on CPUs: masks from 16 random bits an element, attention that never converts them to floats.

PyTorch's CPU kernels draw a float per element and convert masks to floats; in a small transformer that is a quarter of
a training step. On GPUs, and in compiled blocks, PyTorch's own fused kernels are used. The rate is exact to 2^-16.
"""

import torch
import torch.nn.functional as F


def drop_mask(shape: torch.Size, rate: float) -> torch.Tensor:
    """True, with probability `rate`, where an element is dropped: bool on the CPU, from the global generator."""
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] < round(rate * 65536) - 32768).view(shape)


def dropout(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """`x` with a share `rate` of its elements set to zero and the rest scaled by 1 / (1 - rate), while training."""
    if not training or rate == 0.0 or not _is_cheap_on(x):
        return F.dropout(x, rate, training)
    return x.masked_fill(drop_mask(x.shape, rate), 0.0) * (1.0 / (1.0 - rate))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v with dropout on the probabilities while training; (B, H, L, d) each."""
    if not training or rate == 0.0 or not _is_cheap_on(q):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate if training else 0.0)
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return weights.masked_fill(drop_mask(weights.shape, rate), 0.0) @ (v * (1.0 / (1.0 - rate)))


def _is_cheap_on(x: torch.Tensor) -> bool:
    """Whether random words pay there: not on GPUs, nor where a compiler draws the mask within its own kernel."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
