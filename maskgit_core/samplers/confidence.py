"""MaskGIT's own order: draw every masked token, keep those the model was surest of (Chang et al. 2022, section 3.2).

Surety is log p of the drawn token plus Gumbel noise of a temperature that falls linearly to zero; the released JAX code
uses 4.5. `token_draw: gumbel_argmax` with `confidence: logit` is the variant of the 1d-tokenizer code.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from maskgit_core import rng
from maskgit_core.decoding import (
    LEAST_TEMPERATURE,
    Decoder,
    chosen,
    draw_tokens,
    limited,
    log_probabilities,
)
from maskgit_core.hints import Neutral, Range, Revised
from maskgit_core.masking import Rounding
from maskgit_core.samplers import TemperatureSampler


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Reveals by confidence.

    Attributes:
        choice_temperature: of the Gumbel noise on the confidence, annealed.
        choice_anneal: the factor of the choice temperature at step t: `after_step` 1 - (t + 1) / T (the JAX release),
            `to_last` 1 - t / (T - 1) (Halton-MaskGIT).
        token_draw: `categorical`, or `gumbel_argmax` whose noise is annealed like the choice (greedy at the end).
        confidence: of the drawn token: `log_prob` under the distribution that it was drawn from (after temperature,
            top_k and top_p, as in the PyTorch MaskGIT), `log_prob_all` under that over all tokens (before top_k and
            top_p), or the raw `logit`.
        reveal_counts: how the schedule becomes numbers of tokens; see `maskgit_core.masking.masked_counts`.
    """

    guidance_start: Annotated[float, Range(0.0, 1.0), Neutral(0.0)] = 0.0
    guidance_end: Annotated[float, Range(0.0, 1.0), Neutral(1.0)] = 1.0
    choice_temperature: Annotated[float, Range(0.0)] = 4.5
    top_k: Annotated[int | None, Range(1), Revised(2, unless=(None,))] = None
    top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True), Revised(2, unless=(None,))] = None
    token_draw: Literal["categorical", "gumbel_argmax"] = "categorical"
    confidence: Literal["log_prob", "log_prob_all", "logit"] = "log_prob"
    choice_anneal: Annotated[Literal["after_step", "to_last"], Neutral("after_step")] = "after_step"
    reveal_counts: Annotated[Rounding, Neutral("masked_down")] = "masked_down"

    def fill(self, state: Decoder) -> None:
        """Reveals by confidence."""
        counts_TB = self.counts(state, self.reveal_counts)
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
            sure_BL = sure_BL + noise * rng.gumbels(state.seeds_B, rng.CHOICE, sure_BL.shape[1], step)
            count_B = state.masked_BL.sum(1) - counts_TB[step]
            state.reveal(chosen(sure_BL, state.masked_BL, count_B), drawn_BL)

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
