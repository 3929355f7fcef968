"""Reveals in a random order, one of its own for each sample; the plainest baseline of the reveal orders."""

from dataclasses import dataclass
from typing import Annotated

from maskgit_core import rng
from maskgit_core.decoding import Decoder
from maskgit_core.hints import Neutral, Range
from maskgit_core.masking import Rounding
from maskgit_core.samplers import TemperatureSampler
from maskgit_core.samplers.halton import reveal_in_order


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Reveals in random order; all cells of a step are drawn independently.

    Attributes:
        reveal_counts: how the schedule becomes numbers of tokens; see `maskgit_core.masking.masked_counts`.
    """

    guidance_start: Annotated[float, Range(0.0, 1.0), Neutral(0.0)] = 0.0
    guidance_end: Annotated[float, Range(0.0, 1.0), Neutral(1.0)] = 1.0
    reveal_counts: Annotated[Rounding, Neutral("masked_down")] = "masked_down"

    def fill(self, state: Decoder) -> None:
        """Reveals in random order."""
        counts_TB = self.counts(state, self.reveal_counts)
        order_BL = rng.uniforms(state.seeds_B, rng.ORDER, state.tokens_BL.shape[1])
        places_BL = order_BL.argsort(dim=1, stable=True).argsort(1)
        start, end = self.temperatures
        for step in range(self.num_steps):
            temperature = start + (end - start) * (step + 1) / self.num_steps
            reveal_in_order(state, places_BL, counts_TB[step], step, temperature, self.top_k, self.top_p)
