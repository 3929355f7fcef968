"""The transformer of Halton-MaskGIT's first version (Besnier & Chen 2023, https://arxiv.org/abs/2310.14400).

Pre-LayerNorm between two small MLPs. Tokens, mask and classes share one vocabulary: token k is k, the mask K, class c
is K + 1 + c, no class K + 1 + classes; the class comes last, at a position of its own. The head is tied to the token
embedding and has a bias for every position and word. Logits are cut to the first K (the published code draws from
K + 1 and clamps). Names and shapes are those of the published checkpoints (`{"model_state_dict": ...}`).

Shapes: B batch, L tokens, K codebook, D width.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import GELU
from maskgit_core.layers.transformer import Attention

EPSILON = 1e-12


class Dropout(nn.Module):
    """Dropout as a module, since the published names count it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropped(x, self.rate, self.training)


class PreNorm(nn.Module):
    """fn(LN(x)), with the published names."""

    def __init__(self, dim: int, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = nn.Sequential()
        self.fn.add_module(name, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fn(self.norm(x))
        return out


class Block(nn.ModuleList):
    """x + attention(LN(x)), then x + MLP(LN(x)); a list because the published names number them."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), GELU("none"), Dropout(dropout), nn.Linear(mlp_dim, dim), Dropout(dropout)
        )
        super().__init__([PreNorm(dim, "mha", Attention(dim, num_heads, dropout)), PreNorm(dim, "net", mlp)])

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        x_BLD = x_BLD + self[0](x_BLD)
        x = x_BLD if wanted_BL is None else x_BLD[wanted_BL]
        out: torch.Tensor = x + self[1](x)
        return out


class Model(nn.Module):
    """Masked token transformer with a tied head and a bias for every position.

    Args:
        codebook_size: K. num_tokens: L. num_classes: None for an unconditional model (nothing comes last).
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on embeddings, attention and the MLP while training.
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
        self.mask_token_id, self.null_label = codebook_size, num_classes
        classes = 0 if num_classes is None else num_classes + 1
        words, positions = codebook_size + 1 + classes, num_tokens + (classes > 0)
        self.tok_emb = nn.Embedding(words, dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, positions, dim))
        norm = [nn.LayerNorm(dim, eps=EPSILON) for _ in range(4)]
        line = [nn.Linear(dim, dim) for _ in range(3)]
        self.first_layer = nn.Sequential(
            norm[0], Dropout(dropout), line[0], GELU("none"), norm[1], Dropout(dropout), line[1]
        )
        blocks = [Block(dim, num_heads, mlp_dim or 4 * dim, dropout) for _ in range(num_layers)]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.last_layer = nn.Sequential(norm[2], Dropout(dropout), line[2], GELU("none"), norm[3])
        self.bias = nn.Parameter(torch.zeros(positions, words))
        self.apply(_initialised)
        nn.init.trunc_normal_(self.pos_emb, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        layers = self.transformer["layers"]
        assert isinstance(layers, nn.ModuleList)
        return layers

    def features(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None, wanted_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of `logits`: (B, L, K), or (M, K) at the M wanted positions alone. `labels_B=None` means no class.

        The bias is that of the position, so the head is applied here already.
        """
        ids_BL, length = tokens_BL, tokens_BL.shape[1]
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            ids_BL = torch.cat([tokens_BL, labels_B[:, None] + self.codebook_size + 1], dim=1)
        x_BLD = self.first_layer(self.tok_emb(ids_BL) + self.pos_emb[:, : ids_BL.shape[1]])
        for block in self.blocks[:-1]:
            x_BLD = block(x_BLD)
        words_KD, bias_LK = self.tok_emb.weight[: self.codebook_size], self.bias[:length, : self.codebook_size]
        if wanted_BL is None:
            return F.linear(self.last_layer(self.blocks[-1](x_BLD)[:, :length]), words_KD) + bias_LK
        x_MD = self.blocks[-1](x_BLD, F.pad(wanted_BL, (0, ids_BL.shape[1] - length)))
        return F.linear(self.last_layer(x_MD), words_KD) + bias_LK[wanted_BL.nonzero()[:, 1]]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K): the features themselves."""
        return features

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for token ids in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))


def _initialised(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases zero, norms one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, Attention):
        nn.init.xavier_uniform_(module.in_proj_weight)
