"""MaskGIT's own transformer (Chang et al. 2022): a post-LayerNorm BERT with a tied head, as released for ImageNet.

Tokens, classes and the mask share one vocabulary of K + classes + 1 entries: token k is k, class c is K + c and stands
in front of the image tokens at a position of its own, the mask is the last entry. Logits are cut to the first K. Names
and shapes are those of the PyTorch port of the released weights (`{"state_dict": ...}`). The release has 16 heads (the
paper's text says 8), LayerNorm with epsilon 1e-12 and, being JAX, the tanh form of GELU; `gelu: erf` gives the port's
arithmetic, whose logits differ by a few 1e-4.

The released model knows no label dropping: label `num_classes` puts the mask in front, which only a model trained here
with label drop has learnt.

Shapes: B batch, L tokens, K codebook, D width, H heads.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import GELU
from maskgit_core.layers.transformer import Attention, through_blocks

EPSILON = 1e-12


class Block(nn.Module):
    """LN(x + attention(x)), then LN(x + MLP(x))."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, gelu: str) -> None:
        super().__init__()
        self.dropout = dropout
        self.MultiHeadAttention = Attention(dim, num_heads, dropout)
        self.AttentionLN = nn.LayerNorm(dim, eps=EPSILON)
        self.MlpLN = nn.LayerNorm(dim, eps=EPSILON)
        self.MLP = nn.Sequential(nn.Linear(dim, mlp_dim), GELU(gelu), nn.Linear(mlp_dim, dim))

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        x_BLD = x_BLD + dropped(self.MultiHeadAttention(x_BLD), self.dropout, self.training)
        x = self.AttentionLN(x_BLD if wanted_BL is None else x_BLD[wanted_BL])
        out: torch.Tensor = self.MlpLN(x + dropped(self.MLP(x), self.dropout, self.training))
        return out


class Model(nn.Module):
    """Masked token transformer with post-LayerNorm and a tied head.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model (nothing stands in front).
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on embeddings, attention and both branches while training.
        gelu: `tanh` as in the JAX release, or `erf`.
    """

    def __init__(
        self,
        *,
        codebook_size: Derived[int],
        num_tokens: Derived[int],
        num_classes: Derived[int | None] = None,
        dim: Annotated[int, Range(8, 8192)] = 768,
        num_layers: Annotated[int, Range(1, 128)] = 24,
        num_heads: Annotated[int, Range(1, 128), Divides("dim")] = 16,
        mlp_dim: Annotated[int | None, Range(1, 32768)] = None,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.1,
        gelu: Literal["tanh", "erf"] = "tanh",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.null_label = num_classes
        vocabulary = codebook_size + (num_classes or 0) + 1
        self.mask_token_id = vocabulary - 1
        self.dropout = dropout
        form = "tanh" if gelu == "tanh" else "none"
        self.tok_emb = nn.Embedding(vocabulary, dim)
        self.pos_emb = nn.Parameter(torch.zeros(num_tokens + (num_classes is not None), dim))
        blocks = (Block(dim, num_heads, mlp_dim or 4 * dim, dropout, form) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.Token_Prediction = nn.Sequential(nn.Linear(dim, dim), GELU(form), nn.LayerNorm(dim, eps=EPSILON))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.emb_ln = nn.LayerNorm(dim, eps=EPSILON)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        ids_BL = tokens_BL
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            ids_BL = torch.cat([(self.codebook_size + labels_B)[:, None], tokens_BL], dim=1)
        x_BLD = self.emb_ln(self.tok_emb(ids_BL) + self.pos_emb[: ids_BL.shape[1]])
        x_BLD = dropped(x_BLD, self.dropout, self.training)
        return through_blocks(self.blocks, x_BLD, tokens_BL.shape[1], wanted_BL)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed."""
        size = self.codebook_size
        return F.linear(self.Token_Prediction(features), self.tok_emb.weight[:size], self.bias[:size])

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K) or `mask_token_id`."""
        return self.logits(self.features(tokens_BL, labels_B))
