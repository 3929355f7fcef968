"""Random-order reveals, each followed by a correction that masks some tokens again (predictor-corrector).

The corrector of masked diffusion runs the noising process for a moment and the model back again (Campbell et al. 2022,
https://arxiv.org/abs/2205.14987, section 4.4; for masks Gat et al. 2024, https://arxiv.org/abs/2407.15595). Here a step
reveals, at random positions, as many tokens as its schedule asks plus c, then masks c of the tokens revealed before at
random, so the number of masks follows the schedule and a step costs one evaluation.

Law in place of "revealed once": a position may be masked again at most once per step, never at the last step, and given
tokens never.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, chosen, draw_tokens
from maskgit_core.hints import Range
from maskgit_core.samplers import TemperatureSampler

#: Positions can be masked again.
REMASKS = True


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Reveals in random order and corrects at random.

    Attributes:
        corrector_share: c as a share of the tokens revealed before the step.
    """

    corrector_share: Annotated[float, Range(0.0, 1.0)] = 0.1

    def fill(self, state: Decoder) -> None:
        """Reveals in random order and corrects."""
        unknown_BL, length = state.masked_BL, state.tokens_BL.shape[1]
        counts_TB, seeds_B = self.counts(state), state.seeds_B
        start, end = self.temperatures
        for step in range(self.num_steps):
            before_BL = unknown_BL & ~state.masked_BL
            again_B = (before_BL.sum(1) * self.corrector_share).long()
            again_B = torch.minimum(again_B, counts_TB[step])  # so many masks are left; none at the last step
            order_BL = rng.uniforms(seeds_B, rng.ORDER, length, step)
            newly_BL = chosen(order_BL, state.masked_BL, state.masked_BL.sum(1) - counts_TB[step] + again_B)
            logits_MK = state.logits(newly_BL, step, counts_TB[step])
            drawn_M = draw_tokens(
                logits_MK,
                rng.uniforms(seeds_B, rng.TOKEN, length, step)[newly_BL],
                temperature=start + (end - start) * (step + 1) / self.num_steps,
                top_k=self.top_k,
                top_p=self.top_p,
            )
            state.reveal(newly_BL, torch.zeros_like(state.tokens_BL).masked_scatter(newly_BL, drawn_M))
            again_BL = chosen(rng.uniforms(seeds_B, rng.CHOICE, length, step), before_BL, again_B)
            state.masked_BL = state.masked_BL | again_BL
            state.tokens_BL = state.tokens_BL.masked_fill(again_BL, state.model.mask_token_id)
