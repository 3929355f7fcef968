"""Reveals where the prediction has settled since the step before (KLASS, https://arxiv.org/abs/2511.05664).

A position is stable at step t where KL(p_t || p_{t-1}) is below a threshold. Stable positions are revealed first, by
the log-probability of their drawn token, then the others by theirs. The paper reveals as many as are stable and
confident; here their number follows the schedule, so that methods compare at equal evaluations.

Shapes: B samples, L tokens, M masked positions, K codebook.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from maskgit_core.decoding import Decoder, Score, log_probabilities
from maskgit_core.hints import Range
from maskgit_core.samplers import ScoreSampler

#: More than any difference of log-probabilities, so that every stable position comes before every other.
STABLE = 1e4


@dataclass(frozen=True, kw_only=True)
class Sampler(ScoreSampler):
    """Reveals by stability, then confidence.

    Attributes:
        kl_threshold: below it, in nats, a position is stable; the first step has none to compare with, so all are.
    """

    kl_threshold: Annotated[float, Range(0.0)] = 0.01

    def score(self, state: Decoder) -> Score:
        """Log-probabilities, stable positions first; remembers the step before."""
        return Stability(state, self.kl_threshold)


class Stability:
    """Scores that remember the distributions of the step before."""

    def __init__(self, state: Decoder, threshold: float) -> None:
        self.state, self.threshold = state, threshold
        self._before_BLK: torch.Tensor | None = None

    def __call__(self, logits_MK: torch.Tensor, drawn_M: torch.Tensor) -> torch.Tensor:
        masked_BL, logs_MK = self.state.masked_BL, logits_MK.log_softmax(-1)
        sure_M = log_probabilities(logits_MK, drawn_M).clamp(min=-STABLE / 2)
        if self._before_BLK is None:
            self._before_BLK = logs_MK.new_zeros(*masked_BL.shape, logs_MK.shape[-1])
            stable_M = torch.ones_like(sure_M, dtype=torch.bool)
        else:
            kl_M = (logs_MK.exp() * (logs_MK - self._before_BLK[masked_BL])).sum(-1)
            stable_M = kl_M < self.threshold
        self._before_BLK[masked_BL] = logs_MK
        return sure_M + STABLE * stable_M
