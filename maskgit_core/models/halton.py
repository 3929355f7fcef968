"""The transformer of Halton-MaskGIT (Besnier et al., ICLR 2025): AdaLN-zero on the class, QK-norm, SwiGLU, registers.

The class modulates every block instead of being a token (Peebles & Xie 2023); a few learnt register tokens follow the
image tokens. Head and token embedding are tied and have K + 1 rows, the last the mask; logits are cut to the first K
(the published code draws from all K + 1 and clamps). Names and shapes are those of the published checkpoints
(`{"model_state_dict": ...}`).

Published sizes: tiny 6 x 384 x 6 heads, small 12 x 512 x 6, base 12 x 768 x 12, large 24 x 1024 x 16, xlarge
28 x 1152 x 16.
`small` has heads of 85 = floor(512 / 6), so its queries, keys and values have 510 columns.

Shapes: B batch, L tokens, R registers, K codebook, D width, H heads.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Neutral, Range
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import SiLU, silu

EPSILON = 1e-5
#: The modulation of a batch is one product over its samples; with few rows CPUs sum in another order, so that a sample
#: would depend on how many are drawn with it. Padding to this many rows costs next to nothing.
MIN_ROWS = 64


class Norm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019) in float32, with a weight and, where asked, a bias."""

    def __init__(self, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.weight * rms_normed(x)
        return out if self.bias is None else out + self.bias


def rms_normed(x: torch.Tensor) -> torch.Tensor:
    """x over its root mean square along the last axis, in the precision of x."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPSILON).to(x.dtype)


class Attention(nn.Module):
    """Self-attention whose queries and keys are RMS-normed over all heads together; no biases."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        inner = dim // num_heads * num_heads
        self.wq = nn.Linear(dim, inner, bias=False)
        self.wk = nn.Linear(dim, inner, bias=False)
        self.wv = nn.Linear(dim, inner, bias=False)
        self.wo = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        parts = (rms_normed(self.wq(x_BLD)), rms_normed(self.wk(x_BLD)), self.wv(x_BLD))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        out_BHLd = attention(q.to(v.dtype), k.to(v.dtype), v, self.dropout, self.training)
        return dropped(self.wo(out_BHLd.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) with two thirds of the asked width, rounded up to a multiple of 256."""

    def __init__(self, dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        width = -(-(2 * mlp_dim // 3) // 256) * 256
        self.w1 = nn.Linear(dim, width, bias=False)
        self.w2 = nn.Linear(width, dim, bias=False)
        self.w3 = nn.Linear(dim, width, bias=False)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        gated = silu(self.w1(x_BLD)) * self.w3(x_BLD)
        out_BLD: torch.Tensor = self.w2(dropped(gated, self.dropout, self.training))
        return out_BLD


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x * (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def by_token(values_BD: torch.Tensor, wanted_BL: torch.Tensor | None) -> torch.Tensor:
    """Values that are the same for all tokens of a sample, to go with (B, L, D), or with (M, D) at wanted positions."""
    return values_BD[:, None] if wanted_BL is None else values_BD[wanted_BL.nonzero()[:, 0]]


class Block(nn.Module):
    """Attention and SwiGLU, each shifted, scaled and gated by the class; gates are zero at the start of training."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(SiLU(), nn.Linear(dim, 6 * dim))
        self.ln1, self.ln2 = Norm(dim), Norm(dim)
        self.attn = Attention(dim, num_heads, dropout)
        self.ff = FeedForward(dim, mlp_dim, dropout)

    def start_closed(self) -> None:
        """Sets the modulation to zero, so that the block passes its input on unchanged."""
        for parameter in self.mlp.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x_BLD: torch.Tensor, class_BD: torch.Tensor, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        given = self.mlp(class_BD)[: len(x_BLD)].chunk(6, dim=1)
        shift, scale, gate = (by_token(values_BD, None) for values_BD in given[:3])
        x_BLD = torch.addcmul(x_BLD, gate, self.attn(modulated(self.ln1(x_BLD), shift, scale)))
        shift, scale, gate = (by_token(values_BD, wanted_BL) for values_BD in given[3:])
        x = x_BLD if wanted_BL is None else x_BLD[wanted_BL]
        return torch.addcmul(x, gate, self.ff(modulated(self.ln2(x), shift, scale)))


class LastNorm(nn.Module):
    """Norm before the head, shifted and scaled by the class."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = Norm(dim, bias=True)
        self.mlp = nn.Sequential(SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: torch.Tensor, class_BD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        count = len(x) if wanted_BL is None else len(wanted_BL)
        shift, scale = (by_token(values_BD, wanted_BL) for values_BD in self.mlp(class_BD)[:count].chunk(2, dim=1))
        return modulated(self.norm_final(x), shift, scale)


class Encoder(nn.Module):
    """The blocks; a module of its own because the published names have it."""

    def __init__(self, num_layers: int, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, num_heads, mlp_dim, dropout) for _ in range(num_layers))


class Model(nn.Module):
    """Masked token transformer modulated by the class.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model (all samples are "no class").
        dim: width D. num_layers: blocks. num_heads: heads of floor(dim / num_heads) columns.
        mlp_dim: width of the MLP before the rule of `FeedForward`; None for 4 D.
        num_registers: R. dropout: on attention and both branches while training.
        mask_logit: in training the mask is one of the K + 1 tokens that could be predicted, as published; it never is
            what was hidden, so this only pushes its logit down. Sampling never draws it.
    """

    def __init__(
        self,
        *,
        codebook_size: Derived[int],
        num_tokens: Derived[int],
        num_classes: Derived[int | None] = None,
        dim: Annotated[int, Range(8, 8192)] = 768,
        num_layers: Annotated[int, Range(1, 128)] = 12,
        num_heads: Annotated[int, Range(1, 128)] = 12,
        mlp_dim: Annotated[int | None, Range(1, 32768)] = None,
        num_registers: Annotated[int, Range(0, 64)] = 1,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.1,
        mask_logit: Annotated[bool, Neutral(False)] = False,
    ) -> None:
        super().__init__()
        if dim < num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads for a width of {dim}; give at most dim heads")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.mask_token_id, self.null_label, self.mask_logit = codebook_size, num_classes, mask_logit
        self.cls_emb = nn.Embedding((num_classes or 0) + 1, dim)
        self.tok_emb = nn.Embedding(codebook_size + 1, dim)
        self.pos_emb = nn.Embedding(num_tokens, dim)
        self.transformer = Encoder(num_layers, dim, num_heads, mlp_dim or 4 * dim, dropout)
        self.last_norm = LastNorm(dim)
        self.head = nn.Linear(dim, codebook_size + 1)
        self.reg_tokens = nn.Embedding(num_registers, dim) if num_registers else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block):
                module.start_closed()
        self.head.weight = self.tok_emb.weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.transformer.layers

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        count, length = tokens_BL.shape
        if labels_B is None or self.num_classes is None:
            labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes or 0)
        if not self.training and count < MIN_ROWS:
            labels_B = F.pad(labels_B, (0, MIN_ROWS - count))
        class_BD = self.cls_emb(labels_B)
        x_BLD = self.tok_emb(tokens_BL) + self.pos_emb.weight[:length]
        if self.reg_tokens is not None:
            x_BLD = torch.cat([x_BLD, self.reg_tokens.weight.expand(count, -1, -1)], dim=1)
        for block in self.blocks[:-1]:
            x_BLD = block(x_BLD, class_BD)
        if wanted_BL is None:
            out: torch.Tensor = self.last_norm(self.blocks[-1](x_BLD, class_BD)[:, :length], class_BD)
            return out
        x_MD = self.blocks[-1](x_BLD, class_BD, F.pad(wanted_BL, (0, x_BLD.shape[1] - length)))
        out = self.last_norm(x_MD, class_BD, wanted_BL)
        return out

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed.

        While training with `mask_logit`: (..., K + 1).
        """
        size = self.codebook_size + (self.training and self.mask_logit)
        return F.linear(features, self.tok_emb.weight[:size], self.head.bias[:size])

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))
