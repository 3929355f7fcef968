"""Pre-LayerNorm bidirectional transformer: the layout of the PyTorch MaskGIT (xyfJASON), 24 x 768 x 8 heads there.

The class is a token of its own, put before the image tokens and left without a position; class `num_classes` means
"no class". Without classes (`num_classes=None`) nothing is put before. Published checkpoints load strictly (`{"model":
state_dict}`; names and shapes are those of this module).

Shapes: B batch, L tokens, M wanted positions (row-major over the batch), K codebook, D width, H heads.
"""

from typing import Annotated

import torch
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.transformer import through_blocks


class Attention(nn.Module):
    """Multi-head self-attention with a fused query-key-value projection without bias."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x_BLD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out_BHLd = attention(q, k, v, self.dropout, self.training)
        return dropped(self.out(out_BHLd.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        x_BLD = x_BLD + self.attn(self.ln1(x_BLD))
        x = x_BLD if wanted_BL is None else x_BLD[wanted_BL]
        return x + dropped(self.mlp(self.ln2(x)), self.dropout, self.training)


class Model(nn.Module):
    """Masked token transformer with pre-LayerNorm.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model.
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on token embeddings, attention and both branches while training.
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
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.mask_token_id = codebook_size
        self.null_label = num_classes
        self.dropout = dropout
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.token_emb = nn.Embedding(codebook_size + 1, dim)
        if num_classes is not None:
            self.class_emb = nn.Embedding(num_classes + 1, dim)
        blocks = (Block(dim, num_heads, mlp_dim or 4 * dim, dropout) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, codebook_size))
        self.apply(_initialised)
        nn.init.normal_(self.pos_emb, std=0.02)

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        x_BLD = self.token_emb(tokens_BL) + self.pos_emb[:, : tokens_BL.shape[1]]
        x_BLD = dropped(x_BLD, self.dropout, self.training)
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            x_BLD = torch.cat([self.class_emb(labels_B)[:, None], x_BLD], dim=1)
        return through_blocks(self.blocks, x_BLD, tokens_BL.shape[1], wanted_BL)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed."""
        logits: torch.Tensor = self.classifier(features)
        return logits

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))


def _initialised(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases zero, norms one (BERT)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
