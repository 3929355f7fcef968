"""TiTok's generator for L-32 and B-64 (Yu et al. 2024, https://arxiv.org/abs/2406.07550): a post-LayerNorm BERT.

Tokens, mask and classes share one vocabulary: token k is k, the mask K, class c is K + 1 + c, no class K + 1 + classes;
the class comes first, at a position of its own. The head is not tied. GELU (erf), LayerNorm with epsilon 1e-12. Names
and shapes are those of the published checkpoints, which are Hugging Face's `BertModel` with a head.

Shapes: B batch, L tokens, K codebook, D width.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import gelu
from maskgit_core.layers.transformer import through_blocks

EPSILON = 1e-12
#: Numbers that Hugging Face's embedding keeps beside its weights.
NOT_WEIGHTS = ("model.embeddings.position_ids", "model.embeddings.token_type_ids")


class Embeddings(nn.Module):
    """Token, position and (always the first) type embedding, normalised."""

    def __init__(self, vocabulary: int, positions: int, dim: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, dim)
        self.position_embeddings = nn.Embedding(positions, dim)
        self.token_type_embeddings = nn.Embedding(2, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        x_BLD = self.word_embeddings(ids_BL) + self.token_type_embeddings.weight[0]
        out: torch.Tensor = self.LayerNorm(x_BLD + self.position_embeddings.weight[: ids_BL.shape[1]])
        return out


class Heads(nn.Module):
    """Multi-head self-attention before its output layer."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x_BLD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return attention(q, k, v, self.dropout, self.training).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """LN(x + linear(y))."""

    def __init__(self, before: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.dense = nn.Linear(before, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.LayerNorm(x + dropped(self.dense(y), self.dropout, self.training))
        return out


class Block(nn.Module):
    """Attention and MLP, each added and then normalised."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Heads(dim, num_heads, dropout), "output": Output(dim, dim, dropout)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, mlp_dim)})
        self.output = Output(mlp_dim, dim, dropout)

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        y, x = self.attention["self"](x_BLD), x_BLD
        if wanted_BL is not None:
            y, x = y[wanted_BL], x[wanted_BL]
        x = self.attention["output"](y, x)
        out: torch.Tensor = self.output(gelu(self.intermediate["dense"](x), "none"), x)
        return out


class Model(nn.Module):
    """Masked token transformer with post-LayerNorm and a head of its own.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model (nothing comes first).
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on embeddings, attention and both branches while training.
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
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        self.codebook_size, self.num_tokens, self.num_classes = codebook_size, num_tokens, num_classes
        self.mask_token_id, self.null_label, self.dropout = codebook_size, num_classes, dropout
        classes = 0 if num_classes is None else num_classes + 1
        blocks = [Block(dim, num_heads, mlp_dim or 4 * dim, dropout) for _ in range(num_layers)]
        self.model = nn.ModuleDict(
            {
                "embeddings": Embeddings(codebook_size + 1 + classes, num_tokens + (classes > 0), dim),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(blocks)}),
                "lm_head": nn.Linear(dim, codebook_size),
            }
        )
        self.apply(_initialised)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        layers = self.model["encoder"]["layer"]  # type: ignore[index]
        assert isinstance(layers, nn.ModuleList)
        return layers

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, D), or (M, D) at the M wanted positions. `labels_B=None` means no class."""
        ids_BL = tokens_BL
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            ids_BL = torch.cat([labels_B[:, None] + self.codebook_size + 1, tokens_BL], dim=1)
        x_BLD = dropped(self.model["embeddings"](ids_BL), self.dropout, self.training)
        return through_blocks(self.blocks, x_BLD, tokens_BL.shape[1], wanted_BL)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of features (..., D); each token by itself, so only those needed need be passed."""
        out: torch.Tensor = self.model["lm_head"](features)
        return out

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))

    @staticmethod
    def from_published(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published tensors without the position numbers that older libraries saved beside them."""
        return {name: tensor for name, tensor in tensors.items() if name not in NOT_WEIGHTS}


def _initialised(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases zero, norms one (BERT)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
