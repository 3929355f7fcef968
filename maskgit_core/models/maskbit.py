"""MaskBit's transformer without token embeddings (Weber et al. 2024, https://arxiv.org/abs/2409.16211).

A token enters as its bits, -1 or 1, and 0 where its group is masked; one linear layer takes them to the width. Each
group of bits has logits of its own, so a token of 14 bits in 2 groups is two draws from 128. The class comes
after the tokens. Post-LayerNorm (epsilon 1e-12), GELU (erf). Names and shapes are those of the published checkpoints.

Shapes: B batch, N tokens, S groups a token, L = N * S positions, K = 2^(bits / S) values of a group, D width.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.errors import ConfigError
from maskgit_core.hints import Derived, Divides, Range
from maskgit_core.layers.dropout import dropout as dropped
from maskgit_core.layers.steady import GELU
from maskgit_core.layers.transformer import Attention as Heads
from maskgit_core.token_groups import bits_of

EPSILON = 1e-12


class Attention(nn.Module):
    """LN(x + attention(x))."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.mha = Heads(dim, num_heads, dropout)
        self.norm = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        x_BLD = x_BLD + dropped(self.mha(x_BLD), self.dropout, self.training)
        out: torch.Tensor = self.norm(x_BLD if wanted_BL is None else x_BLD[wanted_BL])
        return out


class FeedForward(nn.Module):
    """LN(x + MLP(x))."""

    def __init__(self, dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.net = nn.Sequential(nn.Linear(dim, mlp_dim), GELU("none"), nn.Linear(mlp_dim, dim))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x + dropped(self.net(x), self.dropout, self.training))
        return out


class Block(nn.ModuleList):
    """Attention and MLP; a list because the published names number them."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__([Attention(dim, num_heads, dropout), FeedForward(dim, mlp_dim, dropout)])

    def forward(self, x_BLD: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = self[1](self[0](x_BLD, wanted_BL))
        return out


class Model(nn.Module):
    """Masked transformer over groups of bits.

    Args:
        codebook_size: of the tokenizer, a power of two. num_tokens: N. num_classes: None for an unconditional model.
        splits: groups a token, S; divides the number of bits. The attributes `codebook_size` and `num_tokens` of the
            model are those of the groups, K and L.
        dim: width D. num_layers: blocks. num_heads: must divide dim. mlp_dim: width of the MLP; None for 4 D.
        dropout: on embeddings, attention and both branches while training.

    Raises:
        ConfigError: a codebook that is no power of two, or whose bits the groups do not share evenly.
    """

    def __init__(
        self,
        *,
        codebook_size: Derived[int],
        num_tokens: Derived[int],
        num_classes: Derived[int | None] = None,
        splits: Annotated[int, Range(1, 16)] = 1,
        dim: Annotated[int, Range(8, 8192)] = 1024,
        num_layers: Annotated[int, Range(1, 128)] = 24,
        num_heads: Annotated[int, Range(1, 128), Divides("dim")] = 16,
        mlp_dim: Annotated[int | None, Range(1, 32768)] = None,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.1,
    ) -> None:
        super().__init__()
        bits = codebook_size.bit_length() - 1
        if 2**bits != codebook_size or bits % splits:
            raise ConfigError(
                f"model.splits: {splits} groups cannot share the bits of a codebook of {codebook_size}; "
                "use a tokenizer of 2^bits tokens and a divisor of its bits"
            )
        if dim % num_heads:
            raise ConfigError(f"model.num_heads: {num_heads} heads do not divide dim {dim}; give a divisor of dim")
        self.splits, self.dropout, self.bits = splits, dropout, bits
        self.codebook_size, self.num_tokens, self.num_classes = 2 ** (bits // splits), num_tokens * splits, num_classes
        self.mask_token_id, self.null_label = self.codebook_size, num_classes
        self.register_buffer("bits_to_indices", (2 ** torch.arange(bits // splits)).int())
        if num_classes is not None:
            self.class_emb = nn.Embedding(num_classes + 1, dim)
        self.input_proj = nn.Linear(bits, dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, num_tokens + (num_classes is not None), dim))
        self.first_layer = nn.Sequential(nn.LayerNorm(dim, eps=EPSILON))
        blocks = [Block(dim, num_heads, mlp_dim or 4 * dim, dropout) for _ in range(num_layers)]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.last_layer = nn.Sequential(nn.Linear(dim, dim), GELU("none"), nn.LayerNorm(dim, eps=EPSILON))
        self.prediction_layer = nn.Linear(dim, splits * self.codebook_size)
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
        """The input of `logits`: (B, L, K), or (M, K) at the M wanted groups alone. `labels_B=None` means no class.

        Groups of one token share the hidden state but not the head, so the heads are applied here already.
        """
        x_BND = self._embedded(tokens_BL, labels_B)
        for block in self.blocks[:-1]:
            x_BND = block(x_BND)
        count = tokens_BL.shape[1] // self.splits
        if wanted_BL is None:
            return self._by_group(self.blocks[-1](x_BND)[:, :count]).flatten(1, 2)
        wanted_BNS = wanted_BL.unflatten(1, (-1, self.splits))
        wanted_BN = wanted_BNS.any(-1)
        x_MD = self.blocks[-1](x_BND, F.pad(wanted_BN, (0, x_BND.shape[1] - count)))
        return self._by_group(x_MD)[wanted_BNS[wanted_BN]]

    def _embedded(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None) -> torch.Tensor:
        bits_BLb = bits_of(tokens_BL, self.bits // self.splits)
        bits_BLb = bits_BLb.masked_fill((tokens_BL == self.mask_token_id)[..., None], 0.0)
        x_BND = self.input_proj(bits_BLb.unflatten(1, (-1, self.splits)).flatten(2))
        if self.num_classes is not None:
            if labels_B is None:
                labels_B = torch.full_like(tokens_BL[:, 0], self.num_classes)
            x_BND = torch.cat([x_BND, self.class_emb(labels_B)[:, None]], dim=1)
        return dropped(self.first_layer(x_BND + self.pos_emb), self.dropout, self.training)

    def _by_group(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to logits (..., S, K)."""
        out: torch.Tensor = self.prediction_layer(self.last_layer(x)).unflatten(-1, (self.splits, -1))
        return out

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., K): the features themselves."""
        return features

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, L, K) for group values in [0, K], where K is the mask."""
        return self.logits(self.features(tokens_BL, labels_B))

    @staticmethod
    def from_published(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published tensors under today's names: `token_emb` was the name of `input_proj` in some files."""
        return {
            "input_proj" + name.removeprefix("token_emb") if name.startswith("token_emb.") else name: tensor
            for name, tensor in tensors.items()
        }


def _initialised(module: nn.Module) -> None:
    """Weights from a truncated normal of deviation 0.02, biases zero, norms one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, Heads):
        nn.init.xavier_uniform_(module.in_proj_weight)
