"""Reveals where the model is least undecided: the positions whose distribution has the lowest entropy.

Score: sum_k p_k log p_k, the negative entropy of the distribution at a position before anything is drawn from it (as in
Dream, Ye et al. 2025, https://arxiv.org/abs/2508.15487; also the order of the entropy-bounded sampler,
https://arxiv.org/abs/2505.24857).
"""

from dataclasses import dataclass

import torch

from maskgit_core.decoding import Decoder, Score
from maskgit_core.samplers import ScoreSampler


@dataclass(frozen=True, kw_only=True)
class Sampler(ScoreSampler):
    """Reveals by low entropy."""

    def score(self, state: Decoder) -> Score:
        """Negative entropy, in nats."""
        return negative_entropy


def negative_entropy(logits_MK: torch.Tensor, drawn_M: torch.Tensor) -> torch.Tensor:
    """sum_k p_k log p_k, in nats: (M,) in [-log K, 0]."""
    logs_MK = logits_MK.log_softmax(-1)
    return (logs_MK.exp() * logs_MK).sum(-1)
