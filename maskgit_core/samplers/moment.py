"""The moment sampler: choose where, then draw (Hayakawa et al. 2025, https://arxiv.org/abs/2510.04525).

MaskGIT draws tokens everywhere and keeps those with the highest log p + a G (Gumbel noise G, choice temperature a). In
the limit of many positions that chooses position i with weight sum_k p_i(k)^b, b = 1 + 1 / a, and its tokens follow
p_i(k)^b / sum: a temperature a / (1 + a) that nobody set. This sampler does just that: positions by Gumbel-top-k on the
logarithm of the moment sum_k p_i(k)^b, then one draw from p_i^b at those alone.

a falls as MaskGIT's choice temperature does, a_t = choice_temperature (1 - (t + 1) / T); at a = 0 draws are greedy.
"""

from typing import Annotated, Any

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, Guidance, chosen, draw_tokens
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Range
from maskgit_core.masking import Schedule, masked_counts

#: The last step's a is 0 and its moment infinite; this is as good as greedy.
LEAST_CHOICE = 1e-3


class Sampler:
    """Chooses positions by the moments of their distributions, then draws there.

    Args:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        choice_temperature: a of the first step; large values choose at random and draw from p itself.
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
        choice_temperature: Annotated[float, Range(0.0)] = 4.5,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1)] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None,
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p = top_k, top_p
        self.choice_temperature = choice_temperature

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
        counts_TB = masked_counts(state.unknown_B, self.num_steps, self.schedule, self.schedule_power)
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
        return state.tokens_BL
