"""Parts of transformers that several published models share.

Shapes: B batch, L tokens, D width, H heads, d width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.layers.dropout import attention


class Attention(nn.Module):
    """Multi-head self-attention with biases; the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out_BHLd = attention(q, k, v, self.dropout, self.training)
        mixed_BLD: torch.Tensor = self.out_proj(out_BHLd.transpose(1, 2).flatten(2))
        return mixed_BLD


def through_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList, x_BLD: torch.Tensor, length: int, wanted_BL: torch.Tensor | None
) -> torch.Tensor:
    """The last `length` positions after all blocks: (B, L, D), or (M, D) at the M wanted ones of them.

    Args:
        blocks: the last one takes a mask of the positions that are wanted as its second argument.
        x_BLD: embeddings; positions before the last `length` are those of a class.
        wanted_BL: bool; None: all.
    """
    for block in blocks[:-1]:
        x_BLD = block(x_BLD)
    if wanted_BL is None:
        features_BLD: torch.Tensor = blocks[-1](x_BLD)
        return features_BLD[:, -length:]
    features_MD: torch.Tensor = blocks[-1](x_BLD, F.pad(wanted_BL, (x_BLD.shape[1] - length, 0)))
    return features_MD


def block_width(model: Any) -> int:
    """D, the width of the rows that a transformer's blocks take: the inputs of its first matrix."""
    return int(next(p.shape[1] for p in model.blocks[0].parameters() if p.dim() == 2))
