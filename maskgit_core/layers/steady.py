"""Elementwise functions and decoders whose results do not depend on what else is in the batch, on CPUs.

PyTorch shares the elements of an array among threads and computes the last few of each share with other instructions,
which round differently; and convolutions take another kernel for a single image.

Shapes: N images, h × w tokens, C channels, H × W pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Fewest elements of a share in PyTorch, and elements of its widest vector loop.
SHARE, VECTOR = 32768, 64
#: Tokens that are decoded at once, and images of a group at most, by device. The last group is filled up, which small
#: grids would pay for hundredfold.
GROUP_TOKENS = {"cpu": 1024, "cuda": 16384}
GROUP_IMAGES = {"cpu": 16, "cuda": 256}
#: What an image of one-dimensional tokens counts as: the 16 x 16 places of its 256 pixels.
ONE_DIMENSIONAL = 256


class SiLU(nn.Module):
    """x * sigmoid(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return silu(x)


class GELU(nn.Module):
    """GELU, `tanh` or `none` (erf)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(x, self.form)


def silu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x); each element by itself."""
    return _evenly(F.silu, x, SHARE)


def gelu(x: torch.Tensor, form: str) -> torch.Tensor:
    """GELU in the form `tanh` or `none` (erf); each element by itself."""
    return _evenly(partial(F.gelu, approximate=form), x, 1)  # takes all threads, however few the elements


def _evenly(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, least: int) -> torch.Tensor:
    """The function of x, filled up so that each of the shares that threads take is a multiple of their vectors.

    A share has at least `least` elements.
    """
    if x.device.type != "cpu" or x.requires_grad or torch.compiler.is_compiling():
        return function(x)
    shares = max(1, min(torch.get_num_threads(), -(-x.numel() // least)))
    spare = -x.numel() % (VECTOR * shares)
    if spare == 0:
        return function(x)
    return function(F.pad(x.flatten(), (0, spare)))[: x.numel()].view_as(x)


def decoded(tokenizer: Any, tokens_Nhw: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) of tokens, decoded in groups of one size, the last filled up.

    So an image does not depend on the batch size (at a given number of threads), and memory does not grow with it.
    """
    count, cells = len(tokens_Nhw), tokens_Nhw[0].numel()
    if tokens_Nhw.shape[1] == 1:  # one-dimensional tokens say nothing of the picture's size
        cells = max(cells, ONE_DIMENSIONAL)
    group = 2
    device = tokens_Nhw.device.type
    limit, most = GROUP_TOKENS.get(device, 1024), GROUP_IMAGES.get(device, 16)
    while group < most and group * 2 * cells <= limit:
        group *= 2
    full_Nhw = torch.cat([tokens_Nhw, tokens_Nhw[:1].expand(-count % group, -1, -1)])
    return torch.cat([tokenizer.decode(part) for part in full_Nhw.split(group)])[:count]
