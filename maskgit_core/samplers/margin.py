"""Reveals where the best token is furthest ahead of the second (Kim et al. 2025, https://arxiv.org/abs/2502.06768).

Score: p_(1) - p_(2), the difference of the two highest probabilities at a position ("top-K probability margin"
there), before anything is drawn from it.
"""

from dataclasses import dataclass

import torch

from maskgit_core.decoding import Decoder, Score
from maskgit_core.samplers import ScoreSampler


@dataclass(frozen=True, kw_only=True)
class Sampler(ScoreSampler):
    """Reveals by probability margin."""

    def score(self, state: Decoder) -> Score:
        """Difference of the two highest probabilities."""
        return margin


def margin(logits_MK: torch.Tensor, drawn_M: torch.Tensor) -> torch.Tensor:
    """Difference of the two highest probabilities: (M,) in [0, 1]."""
    best_M2 = logits_MK.softmax(-1).topk(2, dim=-1).values
    return best_M2[:, 0] - best_M2[:, 1]
