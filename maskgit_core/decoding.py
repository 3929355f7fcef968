"""Shared by the samplers: guided logits where they are needed, token draws, and the bookkeeping of reveals.

Logits, and the last block's MLP, are computed only at the positions asked for; both guidance halves go through the
model in one batch; and while nothing is revealed yet the logits depend on the class alone, so the first step runs once
per class, not per sample.

Shapes: B samples, L tokens, M asked positions (row-major over the batch), K codebook, U distinct labels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.guidance import guidance_scale, guided
from maskgit_core.refusals import check_guidance, check_steps

#: Matrix products of fewer rows take other kernels on CPUs, whose sums round differently; small batches are padded to
#: this many rows, so that a sample does not depend on how many others are drawn with it.
MIN_ROWS = 64
#: Draws at a lower temperature are made at this one, where the most probable token is all but certain: below, logits
#: would overflow.
LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Guidance:
    """Guidance scale over the reveal steps; see `maskgit_core/guidance.py`.

    Outside the steps with start <= t / T < end there is none (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724,
    for diffusion; for masked models eMIGM, https://arxiv.org/abs/2503.07197), which also costs half the evaluations.
    """

    scale: float = 1.0
    schedule: str = "constant"
    power: float = 2.5
    start: float = 0.0
    end: float = 1.0

    def at(self, step: int, num_steps: int, revealed_B: torch.Tensor) -> float | torch.Tensor:
        """s at a step: one number, or float64 (B,) where it depends on the sample and is not 1.0 for all.

        Args:
            revealed_B: share of each sample's unknown tokens that is known after this step.
        """
        if not self.start <= step / num_steps < self.end:
            return 1.0
        if self.schedule == "linear-r" and self.scale != 1.0:
            scale_B: torch.Tensor = 1.0 + (self.scale - 1.0) * revealed_B.double()
            return 1.0 if bool((scale_B == 1.0).all()) else scale_B
        return guidance_scale(self.schedule, self.scale, step, num_steps, 0.0, self.power)


class Decoder:
    """Tokens being revealed.

    Args:
        model: a `Model` (see docs/architecture.md), in eval mode.
        labels_B: int64 classes, or None for an unconditional model.
        grid: (H, W) with H * W = L, or (H, W, S) where a model draws S groups for a token.
        seeds_B: int64, one per sample; all that its draws depend on.
        known_BL: int64 tokens that are given, -1 where unknown; None where nothing is known.
        reuse: a `ContextReuse` (`layers/reuse.py`), where keys and values of earlier evaluations are reused.
        critic: what judges tokens, for the samplers that ask for one.
    Raises:
        ConfigError: a class out of range, a grid or known tokens that do not fit, guidance without classes.
    """

    def __init__(
        self,
        model: Any,
        labels_B: torch.Tensor | None,
        grid: tuple[int, ...],
        seeds_B: torch.Tensor,
        known_BL: torch.Tensor | None = None,
        guidance: Guidance | None = None,
        num_steps: int = 1,
        reuse: Any = None,
        critic: Any = None,
    ) -> None:
        self.model, self.grid, self.num_steps = model, grid, num_steps
        self.reuse, self.critic = reuse, critic
        self.guidance = guidance or Guidance()
        self.seeds_B = seeds_B
        self._check(labels_B, known_BL)
        shape = (len(seeds_B), math.prod(grid))
        self.labels_B = labels_B
        self.tokens_BL = torch.full(shape, model.mask_token_id, dtype=torch.long, device=seeds_B.device)
        self.masked_BL = torch.ones(shape, dtype=torch.bool, device=seeds_B.device)
        if known_BL is not None:
            self.masked_BL = known_BL < 0
            self.tokens_BL = torch.where(self.masked_BL, self.tokens_BL, known_BL)
        self.unknown_B = self.masked_BL.sum(1)
        #: Nothing is known yet, for any sample: kept here, so that no step has to ask the device.
        self.is_fresh = known_BL is None or bool(self.masked_BL.all())

    def _check(self, labels_B: torch.Tensor | None, known_BL: torch.Tensor | None) -> None:
        model = self.model
        if math.prod(self.grid) != model.num_tokens:
            shown = " x ".join(map(str, self.grid))
            raise ConfigError(f"grid: {shown} cells do not fit a model of {model.num_tokens} tokens")
        check_steps(self.num_steps, model.num_tokens)
        check_guidance(self.guidance.scale, model.num_classes)
        if model.num_classes is not None and labels_B is not None and len(labels_B):
            low, high = int(labels_B.min()), int(labels_B.max())
            if low < 0 or high > model.num_classes:
                wrong = low if low < 0 else high
                raise ConfigError(
                    f"labels: class {wrong} is out of range; the model knows classes 0 to {model.num_classes - 1} "
                    f"and {model.num_classes} for none"
                )
        if known_BL is not None and len(known_BL) and int(known_BL.max()) >= model.codebook_size:
            raise ConfigError(
                f"known tokens: id {int(known_BL.max())} is not in the model's codebook of {model.codebook_size}; "
                "use tokens of the tokenizer the model was trained with"
            )

    # -- logits ------------------------------------------------------------------------------------------------------
    def logits(self, wanted_BL: torch.Tensor, step: int, left_B: torch.Tensor) -> torch.Tensor:
        """Guided logits at the wanted positions: float32 (M, K).

        Args:
            wanted_BL: bool.
            step: reveal step t, from 0.
            left_B: number of tokens still masked after this step.
        """
        revealed_B = 1.0 - left_B / self.unknown_B.clamp(min=1)
        scale = self.guidance.at(step, self.num_steps, revealed_B) if self.model.num_classes is not None else 1.0
        if self.model.num_classes is not None and len(self.tokens_BL) > 1 and self.is_fresh:
            return self._first_logits(wanted_BL, scale)
        if _is_one(scale):
            return self._masked_logits(self.tokens_BL, self.labels_B, wanted_BL)
        null_B = torch.full_like(self.tokens_BL[:, 0], self.model.null_label)
        labels_B = null_B if self.labels_B is None else self.labels_B
        both_MK = self._masked_logits(
            self.tokens_BL.repeat(2, 1), torch.cat([labels_B, null_B]), wanted_BL.repeat(2, 1)
        )
        cond_MK, uncond_MK = both_MK.chunk(2)
        return guided(cond_MK, uncond_MK, self._scale_of_rows(scale, lambda: wanted_BL.nonzero()[:, 0]))

    def _scale_of_rows(self, scale: float | torch.Tensor, rows_M: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The scale for logits (M, K): float32 (1, 1), or (M, 1) by the samples that rows belong to."""
        if isinstance(scale, torch.Tensor):
            return scale.float()[rows_M(), None]
        return torch.full((1, 1), scale, dtype=torch.float32, device=self.tokens_BL.device)

    def _first_logits(self, wanted_BL: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """While all is masked: one pass over the distinct labels (and the null label), shared by their samples."""
        null = self.model.null_label
        labels_B = self.labels_B if self.labels_B is not None else torch.full_like(self.tokens_BL[:, 0], null)
        asked = labels_B if _is_one(scale) else torch.cat([labels_B, labels_B.new_tensor([null])])
        labels_U, places = asked.unique(return_inverse=True)
        wanted_UL = torch.ones(len(labels_U), wanted_BL.shape[1], dtype=torch.bool, device=wanted_BL.device)
        masks_UL = self.tokens_BL[:1].expand(len(labels_U), -1)
        logits_ULK: torch.Tensor = self._masked_logits(masks_UL, labels_U, wanted_UL).unflatten(0, wanted_UL.shape)
        if self.reuse is not None:
            count = len(labels_B)
            self.reuse.spread(places if _is_one(scale) else torch.cat([places[:count], places[count:].expand(count)]))
        rows_M, cells_M = wanted_BL.nonzero(as_tuple=True)
        cond_MK = logits_ULK[places[: len(labels_B)][rows_M], cells_M]
        if _is_one(scale):
            return cond_MK
        return guided(cond_MK, logits_ULK[places[-1], cells_M], self._scale_of_rows(scale, lambda: rows_M))

    def _masked_logits(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None, wanted_BL: torch.Tensor
    ) -> torch.Tensor:
        if self.reuse is not None:
            logits_MK: torch.Tensor = self.reuse.logits(tokens_BL, labels_B, wanted_BL, self._evaluated)
            return logits_MK
        return self._evaluated(tokens_BL, labels_B, wanted_BL)

    def _evaluated(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None, wanted_BL: torch.Tensor
    ) -> torch.Tensor:
        count, length = tokens_BL.shape
        if count * length < MIN_ROWS:
            pad = torch.arange(-(-MIN_ROWS // length), device=tokens_BL.device)
            tokens_BL, labels_B = tokens_BL[pad % count], None if labels_B is None else labels_B[pad % count]
            wanted_BL = F.pad(wanted_BL, (0, 0, 0, len(pad) - count))
        asked = int(wanted_BL.sum())
        logits_MK: torch.Tensor
        if asked >= MIN_ROWS:
            logits_MK = self.model.logits(self.model.features(tokens_BL, labels_B, wanted_BL))
            return logits_MK.float()
        spare = (~wanted_BL).flatten().nonzero()[: MIN_ROWS - asked, 0]
        taken_BL = wanted_BL.flatten().index_fill(0, spare, True).view_as(wanted_BL)
        features_MD = self.model.features(tokens_BL, labels_B, taken_BL)
        logits_MK = self.model.logits(features_MD)[wanted_BL[taken_BL]]
        return logits_MK.float()

    # -- reveals -----------------------------------------------------------------------------------------------------
    def reveal(self, newly_BL: torch.Tensor, drawn_BL: torch.Tensor) -> None:
        """Fixes the drawn tokens at `newly_BL`; known and earlier ones never change."""
        newly_BL = newly_BL & self.masked_BL
        self.tokens_BL = torch.where(newly_BL, drawn_BL, self.tokens_BL)
        self.masked_BL = self.masked_BL & ~newly_BL
        self.is_fresh = False


def _is_one(scale: float | torch.Tensor) -> bool:
    return not isinstance(scale, torch.Tensor) and scale == 1.0


def draw_tokens(
    logits_MK: torch.Tensor,
    uniforms_M: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Tokens drawn from softmax(logits / temperature), by inverting the distribution at `uniforms_M`: int64 (M,).

    `top_k` keeps the k most probable tokens; `top_p` the fewest whose probabilities sum to at least p (of what top_k
    left).
    """
    if temperature != 1.0:
        logits_MK = logits_MK / max(temperature, LEAST_TEMPERATURE)
    probabilities_MK = _most_probable(logits_MK, top_k).softmax(-1)
    if top_p is not None and top_p < 1.0:
        probabilities_MK = _nucleus(probabilities_MK, top_p)
    sums_MK = probabilities_MK.cumsum(-1)
    totals_M1 = sums_MK[:, -1:]
    # strictly below the total, so that a token of probability zero is never reached
    points_M1 = torch.minimum(uniforms_M[:, None] * totals_M1, totals_M1 * (1 - 2**-23))
    return torch.searchsorted(sums_MK, points_M1, right=True)[:, 0]


def limited(logits_MK: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """The logits of the tokens that `top_k` and then `top_p` leave, -inf for all others: (M, K)."""
    logits_MK = _most_probable(logits_MK, top_k)
    if top_p is not None and top_p < 1.0:
        logits_MK = logits_MK.masked_fill(_nucleus(logits_MK.softmax(-1), top_p) == 0, -torch.inf)
    return logits_MK


def _most_probable(logits_MK: torch.Tensor, top_k: int | None) -> torch.Tensor:
    """Logits with all but the k highest (and those equal to the k-th) at -inf."""
    if top_k is None or top_k >= logits_MK.shape[1]:
        return logits_MK
    least_M1 = logits_MK.topk(top_k, dim=1).values[:, -1:]
    return logits_MK.masked_fill(logits_MK < least_M1, -torch.inf)


def _nucleus(probabilities_MK: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities with all but the nucleus of mass `top_p` set to zero; the most probable token always stays."""
    sorted_MK, order_MK = probabilities_MK.sort(dim=-1, descending=True, stable=True)
    before_MK = sorted_MK.cumsum(-1) - sorted_MK
    kept_MK = torch.where(before_MK < top_p, sorted_MK, 0.0)
    return torch.zeros_like(probabilities_MK).scatter(-1, order_MK, kept_MK)


def log_probabilities(logits_MK: torch.Tensor, tokens_M: torch.Tensor) -> torch.Tensor:
    """log p of the given tokens under softmax(logits): float32 (M,)."""
    return logits_MK.gather(1, tokens_M[:, None])[:, 0] - logits_MK.logsumexp(-1)


def chosen(scores_BL: torch.Tensor, masked_BL: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """The `count_B` masked positions with the highest scores, ties to the earlier position: bool (B, L)."""
    scores_BL = scores_BL.masked_fill(~masked_BL, -torch.inf)
    ranks_BL = scores_BL.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks_BL < count_B[:, None]) & masked_BL


#: (logits over all tokens after the temperature (M, K), drawn tokens (M,)) -> scores (M,); the highest are kept.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def reveal_by_score(
    state: Decoder,
    score: Score,
    counts_TB: torch.Tensor,
    *,
    temperatures: tuple[float, float],
    choice_temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> torch.Tensor:
    """Reveals in an order that a score gives: draws all masked tokens, keeps the highest, T times; tokens (B, L).

    Args:
        counts_TB: how many tokens stay masked after each step.
        temperatures: of the token draw, from the first value at progress 0 to the second at 1.
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
        top_k, top_p: limits of the token draw; scores are taken before them.
    """
    num_steps, length = len(counts_TB), state.tokens_BL.shape[1]
    for step in range(num_steps):
        left = 1.0 - (step + 1) / num_steps
        temperature = temperatures[1] + (temperatures[0] - temperatures[1]) * left
        logits_MK = state.logits(state.masked_BL, step, counts_TB[step]) / max(temperature, LEAST_TEMPERATURE)
        uniforms_BL = rng.uniforms(state.seeds_B, rng.TOKEN, length, step)
        drawn_M = draw_tokens(logits_MK, uniforms_BL[state.masked_BL], top_k=top_k, top_p=top_p)
        scores_M = score(logits_MK, drawn_M).float()
        drawn_BL = torch.zeros_like(state.tokens_BL).masked_scatter(state.masked_BL, drawn_M)
        scores_BL = torch.zeros_like(drawn_BL, dtype=torch.float32).masked_scatter(state.masked_BL, scores_M)
        scores_BL = scores_BL + choice_temperature * left * rng.gumbels(state.seeds_B, rng.CHOICE, length, step)
        count_B = state.masked_BL.sum(1) - counts_TB[step]
        state.reveal(chosen(scores_BL, state.masked_BL, count_B), drawn_BL)
    return state.tokens_BL
