"""The model as its own critic: at every step the least likely tokens are masked again, revealed ones included.

Path planning with self-planning (P2, Peng et al. 2025, https://arxiv.org/abs/2502.03540), which needs no trained critic
as Token-Critic (Lezama et al. 2022, https://arxiv.org/abs/2209.04439) does. One evaluation gives a distribution at
every position. Masked positions draw a token and score its log-probability; revealed ones score `stickiness` times
that of the token they have. The N - n_t highest scores are kept, all others are masked.

Law in place of "revealed once": given tokens never change, n_t masks are left after step t, none after the last.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from maskgit_core import rng
from maskgit_core.decoding import LEAST_TEMPERATURE, Decoder, chosen, draw_tokens, log_probabilities
from maskgit_core.hints import Range
from maskgit_core.samplers import TemperatureSampler

#: Positions can be masked again.
REMASKS = True


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Keeps the likeliest tokens of each step.

    Attributes:
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
        stickiness: factor of a revealed token's log-probability; 0 never masks one again, more masks more (eta in P2).
    """

    choice_temperature: Annotated[float, Range(0.0)] = 1.0
    stickiness: Annotated[float, Range(0.0)] = 1.0

    def fill(self, state: Decoder) -> None:
        """Keeps the likeliest tokens of each step."""
        unknown_BL, length = state.masked_BL, state.tokens_BL.shape[1]
        counts_TB, seeds_B = self.counts(state), state.seeds_B
        for step in range(self.num_steps):
            left = 1.0 - (step + 1) / self.num_steps
            temperature = self.temperatures[1] + (self.temperatures[0] - self.temperatures[1]) * left
            logits_MK = state.logits(unknown_BL, step, counts_TB[step]) / max(temperature, LEAST_TEMPERATURE)
            masked_M = state.masked_BL[unknown_BL]
            uniforms_M = rng.uniforms(seeds_B, rng.TOKEN, length, step)[unknown_BL]
            drawn_M = draw_tokens(logits_MK, uniforms_M, top_k=self.top_k, top_p=self.top_p)
            tokens_M = torch.where(masked_M, drawn_M, state.tokens_BL[unknown_BL])
            sure_M = log_probabilities(logits_MK, tokens_M)
            sure_M = torch.where(masked_M, sure_M, self.stickiness * sure_M)
            scores_BL = torch.zeros_like(unknown_BL, dtype=torch.float32).masked_scatter(unknown_BL, sure_M)
            scores_BL = scores_BL + self.choice_temperature * left * rng.gumbels(seeds_B, rng.CHOICE, length, step)
            kept_BL = chosen(scores_BL, unknown_BL, state.unknown_B - counts_TB[step])
            drawn_BL = torch.zeros_like(state.tokens_BL).masked_scatter(unknown_BL, tokens_M)
            state.reveal(kept_BL, drawn_BL)
            state.masked_BL = unknown_BL & ~kept_BL
            state.tokens_BL = state.tokens_BL.masked_fill(state.masked_BL, state.model.mask_token_id)
