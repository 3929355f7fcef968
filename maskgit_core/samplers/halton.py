"""A fixed reveal order that spreads over the grid: the Halton sequence with bases 2 and 3 (Besnier et al., ICLR 2025).

The order is that of the published code (cells floor(x * size), first occurrences), but generated until every cell of
the grid is covered, which a fixed number of points does not do from 64 x 64 on.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, draw_tokens
from maskgit_core.hints import Neutral, Range
from maskgit_core.masking import Rounding, Schedule
from maskgit_core.samplers import StepSampler


def halton(index: int, base: int) -> float:
    """The radical inverse of `index` (from 1) in `base`, in (0, 1)."""
    value, scale = 0.0, 1.0
    while index > 0:
        scale /= base
        index, digit = divmod(index, base)
        value += digit * scale
    return value


@lru_cache(maxsize=32)
def halton_cells(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """All (row, column) cells of the grid in Halton order, each once."""
    seen: dict[tuple[int, int], None] = {}
    index = 0
    while len(seen) < height * width:
        index += 1
        seen.setdefault((int(halton(index, 2) * height), int(halton(index, 3) * width)))
    return tuple(seen)


@dataclass(frozen=True, kw_only=True)
class Sampler(StepSampler):
    """Reveals in Halton order; all cells of a step are drawn independently.

    Attributes:
        logit_scale, logit_scale_end: logits are multiplied by a value that goes linearly from the first (first step) to
            the second (last step), raised to `logit_scale_power`.
        logit_scale_warmup: in this many first steps the logits are halved besides (the published `temp_warmup`).
        randomize: begins the sequence at a place of its own for each sample.
        reveal_counts: how the schedule becomes numbers of tokens; see `maskgit_core.masking.masked_counts`.
    """

    num_steps: Annotated[int, Range(1, 4096)] = 32
    schedule: Schedule = "arccos"
    guidance_start: Annotated[float, Range(0.0, 1.0), Neutral(0.0)] = 0.0
    guidance_end: Annotated[float, Range(0.0, 1.0), Neutral(1.0)] = 1.0
    logit_scale: Annotated[float, Range(0.0, low_open=True)] = 1.0
    logit_scale_end: Annotated[float | None, Range(0.0, low_open=True)] = None
    logit_scale_power: Annotated[float, Range(0.0)] = 1.0
    randomize: bool = True
    logit_scale_warmup: Annotated[int, Range(0, 4096), Neutral(0)] = 0
    reveal_counts: Annotated[Rounding, Neutral("revealed_down")] = "revealed_down"

    def fill(self, state: Decoder) -> None:
        """Reveals in Halton order."""
        counts_TB = self.counts(state, self.reveal_counts)
        places_BL = self._places(state.grid, state.seeds_B)
        for step in range(self.num_steps):
            reveal_in_order(state, places_BL, counts_TB[step], step, 1 / self._scale(step), self.top_k, self.top_p)

    def _places(self, grid: tuple[int, ...], seeds_B: torch.Tensor) -> torch.Tensor:
        """The place of each cell in the order: int64 (B, L), a permutation of 0 ... L - 1 per sample.

        In a grid (H, W, S) the groups of a cell follow one another.
        """
        cells_L2 = torch.tensor(halton_cells(grid[0], grid[1]), device=seeds_B.device)
        places_L = (cells_L2[:, 0] * grid[1] + cells_L2[:, 1]).argsort()
        if len(grid) == 3:
            splits = grid[2]
            places_L = (places_L[:, None] * splits + torch.arange(splits, device=seeds_B.device)).flatten()
        if not self.randomize:
            return places_L.expand(len(seeds_B), -1)
        shifts_B1 = (rng.uniforms(seeds_B, rng.ORDER, 1) * len(places_L)).long()
        return (places_L[None] + shifts_B1) % len(places_L)

    def _scale(self, step: int) -> float:
        start = self.logit_scale
        end = start if self.logit_scale_end is None else self.logit_scale_end
        scale: float = (start + (end - start) * step / max(self.num_steps - 1, 1)) ** self.logit_scale_power
        return scale / 2 if step < self.logit_scale_warmup else scale


def reveal_in_order(
    state: Decoder,
    places_BL: torch.Tensor,
    left_B: torch.Tensor,
    step: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    """One step of a fixed order: the masked cells with the lowest places are drawn until `left_B` stay masked."""
    places_BL = places_BL.masked_fill(~state.masked_BL, places_BL.shape[1])
    ranks_BL = places_BL.argsort(dim=1, stable=True).argsort(dim=1)
    count_B = state.masked_BL.sum(1) - left_B
    newly_BL = (ranks_BL < count_B[:, None]) & state.masked_BL
    logits_MK = state.logits(newly_BL, step, left_B)
    uniforms_BL = rng.uniforms(state.seeds_B, rng.TOKEN, places_BL.shape[1], step)
    drawn_M = draw_tokens(logits_MK, uniforms_BL[newly_BL], temperature=temperature, top_k=top_k, top_p=top_p)
    state.reveal(newly_BL, torch.zeros_like(state.tokens_BL).masked_scatter(newly_BL, drawn_M))
