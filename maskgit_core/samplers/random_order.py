"""Reveals in a random order, one of its own for each sample; the plainest baseline of the reveal orders."""

from typing import Annotated, Any

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, Guidance
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Neutral, Range
from maskgit_core.masking import Rounding, Schedule, masked_counts
from maskgit_core.samplers.halton import reveal_in_order


class Sampler:
    """Reveals in random order; all cells of a step are drawn independently.

    Args:
        num_steps: reveal steps T.
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        temperature, temperature_end: of the token draw, from the first value at progress 0 to the second at 1.
        top_k, top_p: limits of the token draw.
        reveal_counts: how the schedule becomes numbers of tokens; see `maskgit_core.masking.masked_counts`.
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
        guidance_start: Annotated[float, Range(0.0, 1.0), Neutral(0.0)] = 0.0,
        guidance_end: Annotated[float, Range(0.0, 1.0), Neutral(1.0)] = 1.0,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1)] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None,
        reveal_counts: Annotated[Rounding, Neutral("masked_down")] = "masked_down",
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p, self.reveal_counts = top_k, top_p, reveal_counts

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
        counts_TB = masked_counts(
            state.unknown_B, self.num_steps, self.schedule, self.schedule_power, self.reveal_counts
        )
        places_BL = rng.uniforms(seeds_B, rng.ORDER, state.tokens_BL.shape[1]).argsort(dim=1, stable=True).argsort(1)
        start, end = self.temperatures
        for step in range(self.num_steps):
            temperature = start + (end - start) * (step + 1) / self.num_steps
            reveal_in_order(state, places_BL, counts_TB[step], step, temperature, self.top_k, self.top_p)
        return state.tokens_BL
