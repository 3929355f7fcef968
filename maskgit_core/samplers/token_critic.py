"""A trained critic says which tokens to keep: Token-Critic (Lezama et al. 2022, https://arxiv.org/abs/2209.04439).

At each step the generator draws every masked token, and the critic, which sees the filled-in picture, gives each token
the log-odds that it is real. The N - n_t highest of them (plus annealed Gumbel noise) are kept, all others are masked
again: also tokens of earlier steps, which a later context may show to be wrong (section 3.3). The last step keeps what
was drawn. A step costs one evaluation of the model (two with guidance) and one of the critic.

Law in place of "revealed once": given tokens never change, n_t masks are left after step t, none after the last.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, chosen, draw_tokens
from maskgit_core.hints import Range
from maskgit_core.samplers import TemperatureSampler

#: Positions can be masked again.
REMASKS = True
#: Asks for a critic beside the model.
NEEDS_CRITIC = True


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Keeps the tokens that a critic takes for real.

    Attributes:
        choice_temperature: of Gumbel noise on the log-odds, times 1 - (t + 1) / T.
    """

    needs_critic: ClassVar[bool] = NEEDS_CRITIC
    choice_temperature: Annotated[float, Range(0.0)] = 1.0

    def fill(self, state: Decoder) -> None:
        """Draws, judges and masks again, step by step."""
        unknown_BL, length, seeds_B = state.masked_BL, state.tokens_BL.shape[1], state.seeds_B
        counts_TB = self.counts(state)
        for step in range(self.num_steps):
            left = 1.0 - (step + 1) / self.num_steps
            temperature = self.temperatures[1] + (self.temperatures[0] - self.temperatures[1]) * left
            masked_BL = state.masked_BL
            logits_MK = state.logits(masked_BL, step, counts_TB[step])
            uniforms_M = rng.uniforms(seeds_B, rng.TOKEN, length, step)[masked_BL]
            drawn_M = draw_tokens(logits_MK, uniforms_M, temperature=temperature, top_k=self.top_k, top_p=self.top_p)
            state.reveal(masked_BL, torch.zeros_like(state.tokens_BL).masked_scatter(masked_BL, drawn_M))
            if step == self.num_steps - 1:
                return
            scores_BL = -state.critic.log_odds(state.tokens_BL, state.labels_B)
            scores_BL = scores_BL + self.choice_temperature * left * rng.gumbels(seeds_B, rng.CHOICE, length, step)
            kept_BL = chosen(scores_BL, unknown_BL, state.unknown_B - counts_TB[step])
            state.masked_BL = unknown_BL & ~kept_BL
            state.tokens_BL = state.tokens_BL.masked_fill(state.masked_BL, state.model.mask_token_id)
