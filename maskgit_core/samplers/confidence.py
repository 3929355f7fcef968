"""MaskGIT's own order: draw every masked token, keep those the model was surest of (Chang et al. 2022, section 3.2).

Surety is log p of the drawn token plus Gumbel noise of a temperature that falls linearly to zero; the released JAX code
uses 4.5. `token_draw: gumbel_argmax` with `confidence: logit` is the variant of the 1d-tokenizer code.
"""

from typing import Annotated, Any, Literal

import torch

from maskgit_core import rng
from maskgit_core.decoding import (
    LEAST_TEMPERATURE,
    Decoder,
    Guidance,
    chosen,
    draw_tokens,
    limited,
    log_probabilities,
)
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Neutral, Range, Revised
from maskgit_core.masking import Rounding, Schedule, masked_counts


class Sampler:
    """Reveals by confidence.

    Args:
        num_steps: reveal steps T.
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        choice_temperature: of the Gumbel noise on the confidence, annealed.
        choice_anneal: the factor of the choice temperature at step t: `after_step` 1 - (t + 1) / T (the JAX release),
            `to_last` 1 - t / (T - 1) (Halton-MaskGIT).
        temperature, temperature_end: of the token draw, from the first value at progress 0 to the second at 1.
        top_k, top_p: limits of the token draw.
        token_draw: `categorical`, or `gumbel_argmax` whose noise is annealed like the choice (greedy at the end).
        confidence: of the drawn token: `log_prob` under the distribution that it was drawn from (after temperature,
            top_k and top_p, as in the PyTorch MaskGIT), `log_prob_all` under that over all tokens (before top_k and
            top_p), or the raw `logit`.
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
        choice_temperature: Annotated[float, Range(0.0)] = 4.5,
        temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0,
        temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None,
        top_k: Annotated[int | None, Range(1), Revised(2, unless=(None,))] = None,
        top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True), Revised(2, unless=(None,))] = None,
        token_draw: Literal["categorical", "gumbel_argmax"] = "categorical",
        confidence: Literal["log_prob", "log_prob_all", "logit"] = "log_prob",
        choice_anneal: Annotated[Literal["after_step", "to_last"], Neutral("after_step")] = "after_step",
        reveal_counts: Annotated[Rounding, Neutral("masked_down")] = "masked_down",
    ) -> None:
        self.num_steps, self.schedule, self.schedule_power = num_steps, schedule, schedule_power
        self.guidance = Guidance(guidance_scale, guidance_schedule, guidance_power, guidance_start, guidance_end)
        self.choice_temperature = choice_temperature
        self.temperatures = (temperature, temperature if temperature_end is None else temperature_end)
        self.top_k, self.top_p = top_k, top_p
        self.token_draw, self.confidence = token_draw, confidence
        self.choice_anneal, self.reveal_counts = choice_anneal, reveal_counts

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
        for step in range(self.num_steps):
            left = 1.0 - (step + 1) / self.num_steps
            temperature = self.temperatures[1] + (self.temperatures[0] - self.temperatures[1]) * left
            all_MK = state.logits(state.masked_BL, step, counts_TB[step])
            if temperature != 1.0:
                all_MK = all_MK / max(temperature, LEAST_TEMPERATURE)
            logits_MK = limited(all_MK, self.top_k, self.top_p)
            noise = self.choice_temperature * self._anneal(step)
            drawn_M = self._drawn(logits_MK, state, step, noise)
            sure_M = logits_MK.gather(1, drawn_M[:, None])[:, 0]
            if self.confidence != "logit":
                sure_M = log_probabilities(logits_MK if self.confidence == "log_prob" else all_MK, drawn_M)
            drawn_BL = torch.zeros_like(state.tokens_BL).masked_scatter(state.masked_BL, drawn_M)
            sure_BL = torch.zeros_like(drawn_BL, dtype=sure_M.dtype).masked_scatter(state.masked_BL, sure_M)
            sure_BL = sure_BL + noise * rng.gumbels(seeds_B, rng.CHOICE, sure_BL.shape[1], step)
            count_B = state.masked_BL.sum(1) - counts_TB[step]
            state.reveal(chosen(sure_BL, state.masked_BL, count_B), drawn_BL)
        return state.tokens_BL

    def _anneal(self, step: int) -> float:
        """The factor of the choice temperature at a step."""
        if self.choice_anneal == "to_last":
            return 1.0 - step / max(self.num_steps - 1, 1)
        return 1.0 - (step + 1) / self.num_steps

    def _drawn(self, logits_MK: torch.Tensor, state: Decoder, step: int, noise: float) -> torch.Tensor:
        if self.token_draw == "categorical":
            uniforms_BL = rng.uniforms(state.seeds_B, rng.TOKEN, state.tokens_BL.shape[1], step)
            return draw_tokens(logits_MK, uniforms_BL[state.masked_BL])
        places_BL = rng.fold(
            state.seeds_B[:, None], torch.arange(state.tokens_BL.shape[1], device=state.seeds_B.device)
        )
        noise_MK = rng.gumbels(places_BL[state.masked_BL], rng.TOKEN, logits_MK.shape[1], step)
        return (logits_MK + noise * noise_MK).argmax(-1)
