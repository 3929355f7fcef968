"""TiTok's generator for S-128 (Yu et al. 2024, https://arxiv.org/abs/2406.07550): a U-ViT (Bao et al. 2023,
https://arxiv.org/abs/2209.12152), whose second half reads the first half's states through long skips.

Vocabulary and class token are those of `models/titok.py`. Pre-LayerNorm, queries, keys and values without biases, GELU
(erf). Names and shapes are those of the published checkpoints.

Shapes: B batch, L tokens, K codebook, D width.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import GELU


class Attention(nn.Module):
    """Multi-head self-attention; a bias on the output layer alone."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x_BLD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out_BHLd = attention(q, k, v, self.dropout, self.training)
        return dropped(self.proj(out_BHLd.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); with a skip, x is first made of it and the state."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, skip: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dropout)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, mlp_dim))
        self.mlp.add_module("act", GELU("none"))
        self.mlp.add_module("fc2", nn.Linear(mlp_dim, dim))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(
        self, x_BLD: torch.Tensor, skip_BLD: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.skip_linear is not None and skip_BLD is not None:
            x_BLD = self.skip_linear(torch.cat([x_BLD, skip_BLD], dim=-1))
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD))
        x = x_BLD if wanted_BL is None else x_BLD[wanted_BL]
        return x + dropped(self.mlp(self.norm2(x)), self.dropout, self.training)


class Model(nn.Module):
    """Masked token transformer with long skips.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model (nothing comes first).
        dim: width D. num_layers: blocks beside the middle one, an even number. num_heads: must divide dim.
        mlp_dim: width of the MLP; None for 4 D. dropout: on attention and both branches while training.
    """

    def __init__(
        self,
        *,
        codebook_size: Derived[int],
        num_tokens: Derived[int],
        num_classes: Derived[int | None] = None,
        dim: Annotated[int, Range(8, 8192)] = 1024,
        num_layers: Annotated[int, Range(2, 128)] = 20,
        num_heads: Annotated[int, Range(1, 128), Divides("dim")] = 16,
        mlp_dim: Annotated[int | None, Range(1, 32768)] = None,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        if num_layers % 2:
            raise ConfigError(f"model.num_layers: found {num_layers}; each skip joins two blocks, give an even number")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.mask_token_id, self.null_label = codebook_size, num_classes
        classes = 0 if num_classes is None else num_classes + 1
        sizes = (dim, num_heads, mlp_dim or 4 * dim, dropout)
        self.embeddings = nn.Embedding(codebook_size + 1 + classes, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens + (classes > 0), dim))
        self.in_blocks = nn.ModuleList(Block(*sizes) for _ in range(num_layers // 2))
        self.mid_block = Block(*sizes)
        self.out_blocks = nn.ModuleList(Block(*sizes, skip=True) for _ in range(num_layers // 2))
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, codebook_size)
        self.apply(_initialised)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in the order in which they run."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        ids_BL, length = tokens_BL, tokens_BL.shape[1]
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            ids_BL = torch.cat([labels_B[:, None] + self.codebook_size + 1, tokens_BL], dim=1)
        x_BLD = self.embeddings(ids_BL) + self.pos_embed[:, : ids_BL.shape[1]]
        skips = []
        for block in self.in_blocks:
            x_BLD = block(x_BLD)
            skips.append(x_BLD)
        x_BLD = self.mid_block(x_BLD)
        for block in self.out_blocks[:-1]:
            x_BLD = block(x_BLD, skips.pop())
        if wanted_BL is None:
            out: torch.Tensor = self.out_blocks[-1](x_BLD, skips.pop())[:, -length:]
            return out
        padded_BL = F.pad(wanted_BL, (ids_BL.shape[1] - length, 0))
        out = self.out_blocks[-1](x_BLD, skips.pop(), padded_BL)
        return out

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed."""
        out: torch.Tensor = self.lm_head(self.norm(features))
        return out

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))


def _initialised(module: nn.Module) -> None:
    """Weights from a truncated normal of deviation 0.02, biases zero, norms one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
