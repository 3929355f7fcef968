"""One masked transformer whose parts are options, so that each gain of later models over MaskGIT is one override.

Pre-LayerNorm blocks as in `prenorm`, and in place of each part of it what another paper has:

| option | as MaskGIT | instead |
|---|---|---|
| `positions` | `learned`, one vector each | `rotary`: queries and keys turned by row and column (arXiv:2104.09864) |
| `mlp` | `gelu` | `swiglu` of two thirds the width (arXiv:2002.05202) |
| `qk_norm` | no | queries and keys divided by their root mean square in each head (after arXiv:2302.05442) |
| `num_registers` | 0 | learnt tokens after the picture's (arXiv:2309.16588) |
| `class_as` | `token` before the picture's | `adaln`: scale, shift, gate of each block, from zero (arXiv:2212.09748) |
| `tied_head` | no | the head's weights are the token embedding's (as in MaskGIT's release) |

Rotary positions take the tokens for a square, where their number is one, else for a line.

Shapes: B batch, L tokens, S rows of the sequence (class, tokens, registers), M wanted positions, K codebook, D width,
H heads, d columns of a head.
"""

from math import isqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.reuse import present_rows
from maskgit_core.layers.steady import SiLU, silu

#: As in `models/halton.py`: products of fewer rows sum in another order on CPUs.
MIN_ROWS = 64
BASE = 10000.0


def rotary_angles(num_tokens: int, head_dim: int) -> torch.Tensor:
    """Angles (L, d / 2): half of the pairs turn with the row, half with the column; all with the place in a line."""
    side = isqrt(num_tokens)
    pairs = head_dim // 2
    places = torch.arange(num_tokens, dtype=torch.float32)
    if side * side != num_tokens:
        return places[:, None] / BASE ** (torch.arange(pairs) / pairs)
    by_row = pairs // 2
    rows, columns = places.div(side, rounding_mode="floor"), places % side
    frequencies = [1 / BASE ** (torch.arange(count) / max(count, 1)) for count in (by_row, pairs - by_row)]
    return torch.cat([rows[:, None] * frequencies[0], columns[:, None] * frequencies[1]], dim=1)


class Attention(nn.Module):
    """Self-attention without biases in the projections of queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, dropout: float, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.qk_norm = num_heads, dropout, qk_norm
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BSD: torch.Tensor, angles_Sp: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x_BSD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q, k = (F.rms_norm(part, part.shape[-1:], eps=1e-6) for part in (q, k))
        if angles_Sp is not None:
            q, k = turned(q, angles_Sp), turned(k, angles_Sp)
        out_BHSd = attention(q, k, v, self.dropout, self.training)
        return dropped(self.out(out_BHSd.transpose(1, 2).flatten(2)), self.dropout, self.training)


def turned(x_BHSd: torch.Tensor, angles_Sp: torch.Tensor) -> torch.Tensor:
    """x with its pairs of columns (i, i + d / 2) turned by the angles of their rows; an odd last column stays."""
    rows = present_rows()
    angles = angles_Sp if rows is None else angles_Sp[rows][:, None]
    pairs = angles_Sp.shape[-1]
    cosine, sine = angles.cos().to(x_BHSd.dtype), angles.sin().to(x_BHSd.dtype)
    first, second, rest = x_BHSd[..., :pairs], x_BHSd[..., pairs : 2 * pairs], x_BHSd[..., 2 * pairs :]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine, rest], dim=-1)


class GeluMlp(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))


class SwiGlu(nn.Module):
    """(silu(x W1) * x W3) W2, two thirds as wide, so that it has as many weights as `GeluMlp`."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        width = max(8, 2 * mlp_dim // 3)
        self.w1, self.w3 = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.w2 = nn.Linear(width, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.w2(silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); shifted, scaled and gated by the class where asked."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, mlp: str, qk_norm: bool, adaln: bool):
        super().__init__()
        self.dropout = dropout
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dropout, qk_norm)
        self.mlp = SwiGlu(dim, mlp_dim) if mlp == "swiglu" else GeluMlp(dim, mlp_dim)
        self.modulation = nn.Sequential(SiLU(), nn.Linear(dim, 6 * dim)) if adaln else None

    def forward(
        self,
        x_BSD: torch.Tensor,
        class_BD: torch.Tensor | None,
        angles_Sp: torch.Tensor | None,
        wanted_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.modulation is None or class_BD is None:
            x_BSD = x_BSD + self.attn(self.ln1(x_BSD), angles_Sp)
            x = x_BSD if wanted_BS is None else x_BSD[wanted_BS]
            plain: torch.Tensor = x + dropped(self.mlp(self.ln2(x)), self.dropout, self.training)
            return plain
        given = self.modulation(class_BD)[: len(x_BSD)].chunk(6, dim=1)
        shift, scale, gate = (values_BD[:, None] for values_BD in given[:3])
        x_BSD = x_BSD + gate * self.attn(self.ln1(x_BSD) * (1 + scale) + shift, angles_Sp)
        x = x_BSD if wanted_BS is None else x_BSD[wanted_BS]
        rows = slice(None) if wanted_BS is None else wanted_BS.nonzero()[:, 0]
        shift, scale, gate = (values[:, None] if wanted_BS is None else values[rows] for values in given[3:])
        out: torch.Tensor = x + gate * dropped(self.mlp(self.ln2(x) * (1 + scale) + shift), self.dropout, self.training)
        return out


class Model(nn.Module):
    """Masked token transformer of chosen parts.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model.
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on embeddings, attention and both branches while training.
        positions, mlp, qk_norm, num_registers, class_as, tied_head: see above.
    """

    def __init__(
        self,
        *,
        codebook_size: Derived[int],
        num_tokens: Derived[int],
        num_classes: Derived[int | None] = None,
        dim: Annotated[int, Range(8, 8192)] = 768,
        num_layers: Annotated[int, Range(1, 128)] = 24,
        num_heads: Annotated[int, Range(1, 128), Divides("dim")] = 8,
        mlp_dim: Annotated[int | None, Range(1, 32768)] = None,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.1,
        positions: Literal["learned", "rotary"] = "learned",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        qk_norm: bool = False,
        num_registers: Annotated[int, Range(0, 64)] = 0,
        class_as: Literal["token", "adaln"] = "token",
        tied_head: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.mask_token_id, self.null_label, self.dropout = codebook_size, num_classes, dropout
        self.class_token = class_as == "token" and num_classes is not None
        adaln = class_as == "adaln" and num_classes is not None
        self.token_emb = nn.Embedding(codebook_size + 1, dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens, dim)) if positions == "learned" else None
        self.class_emb = nn.Embedding(num_classes + 1, dim) if num_classes is not None else None
        self.registers = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        parts = (dim, num_heads, mlp_dim or 4 * dim, dropout, mlp, qk_norm, adaln)
        self.blocks = nn.ModuleList(Block(*parts) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = None if tied_head else nn.Linear(dim, codebook_size)
        self.bias = nn.Parameter(torch.zeros(codebook_size)) if tied_head else None
        self.angles_Sp: torch.Tensor | None
        around = (int(self.class_token), num_registers)  # what is no part of the picture is not turned
        angles = F.pad(rotary_angles(num_tokens, dim // num_heads), (0, 0, *around))
        self.register_buffer("angles_Sp", angles if positions == "rotary" else None, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Weights from a normal of deviation 0.02, biases zero, norms one (BERT); modulations zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.pos_emb, self.registers):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, Block) and module.modulation is not None:
                for parameter in module.modulation.parameters():
                    nn.init.zeros_(parameter)

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        count, length = tokens_BL.shape
        x_BSD = self.token_emb(tokens_BL)
        if self.pos_emb is not None:
            x_BSD = x_BSD + self.pos_emb[:, :length]
        x_BSD, class_BD = dropped(x_BSD, self.dropout, self.training), None
        if self.class_emb is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.null_label or 0)
            if self.class_token:
                x_BSD = torch.cat([self.class_emb(labels_B)[:, None], x_BSD], dim=1)
            else:
                spare = 0 if self.training else max(0, MIN_ROWS - count)
                class_BD = self.class_emb(F.pad(labels_B, (0, spare)))
        if self.registers is not None:
            x_BSD = torch.cat([x_BSD, self.registers.expand(count, -1, -1)], dim=1)
        for block in self.blocks[:-1]:
            x_BSD = block(x_BSD, class_BD, self.angles_Sp)
        before = int(self.class_token)
        if wanted_BL is None:
            out: torch.Tensor = self.blocks[-1](x_BSD, class_BD, self.angles_Sp)
            return out[:, before : before + length]
        after = 0 if self.registers is None else self.registers.shape[1]
        out = self.blocks[-1](x_BSD, class_BD, self.angles_Sp, F.pad(wanted_BL, (before, after)))
        return out

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed."""
        normed = self.norm(features)
        if self.head is not None:
            out: torch.Tensor = self.head(normed)
            return out
        return F.linear(normed, self.token_emb.weight[: self.codebook_size], self.bias)

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))
