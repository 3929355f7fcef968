"""The model as its own critic: at every step the least likely tokens are masked again, revealed ones included.

Path planning with self-planning (P2, Peng et al. 2025, https://arxiv.org/abs/2502.03540), which needs no trained critic
as Token-Critic (Lezama et al. 2022, https://arxiv.org/abs/2209.04439) does. One evaluation gives a distribution at
every position. Masked positions draw a token and score its log-probability; revealed ones score `stickiness` times
that of the token they have. The N - n_t highest scores are kept, all others are masked.

Law in place of "revealed once": given tokens never change, n_t masks are left after step t, none after the last.
"""

from typing import Annotated, Any

import torch

from maskgit_core import rng
from maskgit_core.decoding import LEAST_TEMPERATURE, Decoder, Guidance, chosen, draw_tokens, log_probabilities
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Range
from maskgit_core.masking import Schedule, masked_counts

#: Positions can be masked again.
REMASKS = True


class Sampler:
    """Keeps the likeliest tokens of each step.

    Args:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
        stickiness: factor of a revealed token's log-probability; 0 never masks one again, more masks more (eta in P2).
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
        choice_temperature: Annotated[float, Range(0.0)] = 1.0,
        stickiness: Annotated[float, Range(0.0)] = 1.0,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1)] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None,
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p = top_k, top_p
        self.choice_temperature, self.stickiness = choice_temperature, stickiness

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
            state.tokens_BL = state.tokens_BL.masked_fill(state.masked_BL, model.mask_token_id)
        return state.tokens_BL
