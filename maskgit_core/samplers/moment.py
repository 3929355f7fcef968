"""The moment sampler: choose where, then draw (Hayakawa et al. 2025, https://arxiv.org/abs/2510.04525).

MaskGIT draws tokens everywhere and keeps those with the highest log p + a G (Gumbel noise G, choice temperature a). In
the limit of many positions that chooses position i with weight sum_k p_i(k)^b, b = 1 + 1 / a, and its tokens follow
p_i(k)^b / sum: a temperature a / (1 + a) that nobody set. This sampler does just that: positions by Gumbel-top-k on the
logarithm of the moment sum_k p_i(k)^b, then one draw from p_i^b at those alone.

a falls as MaskGIT's choice temperature does, a_t = choice_temperature (1 - (t + 1) / T); at a = 0 draws are greedy.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, chosen, draw_tokens
from maskgit_core.hints import Range
from maskgit_core.samplers import TemperatureSampler

#: The last step's a is 0 and its moment infinite; this is as good as greedy.
LEAST_CHOICE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Chooses positions by the moments of their distributions, then draws there.

    Attributes:
        choice_temperature: a of the first step; large values choose at random and draw from p itself.
    """

    choice_temperature: Annotated[float, Range(0.0)] = 4.5

    def fill(self, state: Decoder) -> None:
        """Reveals by moments."""
        counts_TB, seeds_B = self.counts(state), state.seeds_B
        length = state.tokens_BL.shape[1]
        for step in range(self.num_steps):
            left = 1.0 - (step + 1) / self.num_steps
            temperature = self.temperatures[1] + (self.temperatures[0] - self.temperatures[1]) * left
            power = 1.0 + 1.0 / max(self.choice_temperature * left, LEAST_CHOICE)
            logs_MK = state.logits(state.masked_BL, step, counts_TB[step]).log_softmax(-1)
            moments_M = (power * logs_MK).logsumexp(-1)
            scores_BL = torch.zeros_like(state.masked_BL, dtype=torch.float32)
            scores_BL = scores_BL.masked_scatter(state.masked_BL, moments_M)
            scores_BL = scores_BL + rng.gumbels(seeds_B, rng.CHOICE, length, step)
            newly_BL = chosen(scores_BL, state.masked_BL, state.masked_BL.sum(1) - counts_TB[step])
            uniforms_M = rng.uniforms(seeds_B, rng.TOKEN, length, step)[newly_BL]
            drawn_M = draw_tokens(
                logs_MK[newly_BL[state.masked_BL]],
                uniforms_M,
                temperature=temperature / power,
                top_k=self.top_k,
                top_p=self.top_p,
            )
            state.reveal(newly_BL, torch.zeros_like(state.tokens_BL).masked_scatter(newly_BL, drawn_M))
