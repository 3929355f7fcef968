"""Random-order reveals, each followed by a correction that masks some tokens again (predictor-corrector).

The corrector of masked diffusion runs the noising process for a moment and the model back again (Campbell et al. 2022,
https://arxiv.org/abs/2205.14987, section 4.4; for masks Gat et al. 2024, https://arxiv.org/abs/2407.15595). Here a step
reveals, at random positions, as many tokens as its schedule asks plus c, then masks c of the tokens revealed before at
random, so the number of masks follows the schedule and a step costs one evaluation.

Law in place of "revealed once": a position may be masked again at most once per step, never at the last step, and given
tokens never.
"""

from typing import Annotated, Any

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, Guidance, chosen, draw_tokens
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Range
from maskgit_core.masking import Schedule, masked_counts

#: Positions can be masked again.
REMASKS = True


class Sampler:
    """Reveals in random order and corrects at random.

    Args:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        corrector_share: c as a share of the tokens revealed before the step.
        temperature, temperature_end: of the token draw, from the first value at progress 0 to the second at 1.
        top_k, top_p: limits of the token draw.
    """

    def __init__(
        self,
        *,
        num_steps: Annotated[int, Range(1, 4096)] = 12,
        schedule: Schedule = "cosine",
        schedule_power: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        guidance_scale: Annotated[float, Range(0.0)] = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_power: Annotated[float, Range(0.0, low_open=True)] = 2.5,
        guidance_start: Annotated[float, Range(0.0, 1.0)] = 0.0,
        guidance_end: Annotated[float, Range(0.0, 1.0)] = 1.0,
        corrector_share: Annotated[float, Range(0.0, 1.0)] = 0.1,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1)] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None,
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p = top_k, top_p
        self.corrector_share = corrector_share

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        labels_B: torch.Tensor | None,
        *,
        grid: tuple[int, ...],
        seeds_B: torch.Tensor,
        known_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens (B, L) in [0, K): a function of model, label, seed and known tokens of each sample alone."""
        state = Decoder(model, labels_B, grid, seeds_B, known_BL, self.guidance, self.num_steps)
        unknown_BL, length = state.masked_BL, state.tokens_BL.shape[1]
        counts_TB = masked_counts(state.unknown_B, self.num_steps, self.schedule, self.schedule_power)
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
            state.tokens_BL = state.tokens_BL.masked_fill(again_BL, model.mask_token_id)
        return state.tokens_BL
