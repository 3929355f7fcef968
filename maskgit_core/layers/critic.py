"""A critic of tokens: which of them were drawn by a generator, and which are the picture's own.

Token-Critic (Lezama et al. 2022, https://arxiv.org/abs/2209.04439): a masked picture is filled in by the generator, and
the critic says for every position whether its token is one of those filled in. It is a transformer like the generator,
with one number a position for its output; `samplers/token_critic.py` keeps the tokens that it takes for real.

Shapes: B samples, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core.decoding import MIN_ROWS
from maskgit_core.layers.transformer import block_width


class Critic(nn.Module):
    """A transformer's features with a head of one number a position.

    Args:
        trunk: a `Model` (docs/architecture.md).
        is_frozen: the trunk is the generator's own and is not trained: the critic is a second head on it.
    """

    def __init__(self, trunk: Any, is_frozen: bool = False) -> None:
        super().__init__()
        self.is_frozen, self.trunk = is_frozen, trunk.requires_grad_(not is_frozen)
        width = block_width(trunk)
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.train(self.training)

    def train(self, mode: bool = True) -> Critic:
        """Training mode, with dropout; a frozen trunk stays as it is when it generates."""
        super().train(mode)
        if self.is_frozen:
            self.trunk.eval()
        return self

    @property
    def blocks(self) -> Any:
        """The trunk's blocks, whose matrices `optimizer: muon` takes."""
        return self.trunk.blocks

    @property
    def num_tokens(self) -> int:
        """L."""
        return int(self.trunk.num_tokens)

    def forward(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Log-odds that each token was drawn: (B, L), for tokens without masks; `labels_B=None` means no class."""
        normed_BLD = self.norm(self.trunk.features(tokens_BL, labels_B))
        # a product with one column would be summed by another kernel for each number of rows
        odds_BL: torch.Tensor = (normed_BLD * self.weight).sum(-1) + self.bias
        return odds_BL

    @torch.no_grad()
    def log_odds(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """The values of `forward`, float32, each sample's the same bits in any batch: (B, L)."""
        count, length = tokens_BL.shape
        spare = max(0, -(-MIN_ROWS // length) - count)
        if spare:
            tokens_BL = F.pad(tokens_BL, (0, 0, 0, spare))
            labels_B = None if labels_B is None else F.pad(labels_B, (0, spare))
        odds_BL: torch.Tensor = self(tokens_BL, labels_B)
        return odds_BL[:count].float()
