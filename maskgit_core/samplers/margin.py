"""Reveals where the best token is furthest ahead of the second (Kim et al. 2025, https://arxiv.org/abs/2502.06768).

Score: p_(1) - p_(2), the difference of the two highest probabilities at a position ("top-K probability margin"
there), before anything is drawn from it.
"""

from typing import Annotated, Any

import torch

from maskgit_core.decoding import Decoder, Guidance, reveal_by_score
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Range
from maskgit_core.masking import Schedule, masked_counts


class Sampler:
    """Reveals by probability margin.

    Args:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
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
        choice_temperature: Annotated[float, Range(0.0)] = 0.0,
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
        return reveal_by_score(
            state,
            margin,
            counts_TB,
            temperatures=self.temperatures,
            choice_temperature=self.choice_temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


def margin(logits_MK: torch.Tensor, drawn_M: torch.Tensor) -> torch.Tensor:
    """Difference of the two highest probabilities: (M,) in [0, 1]."""
    best_M2 = logits_MK.softmax(-1).topk(2, dim=-1).values
    return best_M2[:, 0] - best_M2[:, 1]
