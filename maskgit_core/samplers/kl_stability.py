"""Reveals where the prediction has settled since the step before (KLASS, https://arxiv.org/abs/2511.05664).

A position is stable at step t where KL(p_t || p_{t-1}) is below a threshold. Stable positions are revealed first, by
the log-probability of their drawn token, then the others by theirs. The paper reveals as many as are stable and
confident; here their number follows the schedule, so that methods compare at equal evaluations.

Shapes: B samples, L tokens, M masked positions, K codebook.
"""

from typing import Annotated, Any

import torch

from maskgit_core.decoding import Decoder, Guidance, log_probabilities, reveal_by_score
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Range
from maskgit_core.masking import Schedule, masked_counts

#: More than any difference of log-probabilities, so that every stable position comes before every other.
STABLE = 1e4


class Sampler:
    """Reveals by stability, then confidence.

    Args:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        choice_temperature: of Gumbel noise on the log-probability, times 1 - (t + 1) / T.
        kl_threshold: below it, in nats, a position is stable; the first step has none to compare with, so all are.
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
        kl_threshold: Annotated[float, Range(0.0)] = 0.01,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1)] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None,
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p = top_k, top_p
        self.choice_temperature, self.kl_threshold = choice_temperature, kl_threshold

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
            Stability(state, self.kl_threshold),
            counts_TB,
            temperatures=self.temperatures,
            choice_temperature=self.choice_temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


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
