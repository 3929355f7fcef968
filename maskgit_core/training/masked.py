"""From token batches to what a training step needs: masks, dropped labels, and which tokens count.

All of it is a function of (seed, place in the training stream) and is made on the CPU, ahead of the step: the step
itself never has to ask the GPU how many tokens are masked.

Shapes: B this process's samples, L tokens, M tokens that enter the loss.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from maskgit_core import rng
from maskgit_core.losses import token_weights
from maskgit_core.masking import dropped_labels, exact_counts, training_masks, training_ratios
from maskgit_core.training.recipe import CriticRecipe, Recipe

#: Masked-token accuracy is reported for mask ratios in these quarters.
NUM_BUCKETS = 4


@dataclass(frozen=True)
class MaskedBatch:
    """One process's share of a training step.

    Args:
        inputs_BL: int64 tokens, the mask id where masked.
        labels_B: int64 labels, some dropped; None without classes.
        places_M: int64 flat positions (b * L + l) of the tokens in the loss.
        targets_M: int64 tokens there. weights_M: float32 weights there.
        hidden_M: float32, 1 where the token was masked.
        buckets_M: int64 quarter of the sample's mask ratio.
        total_weight: sum of weights over the *global* batch.
        dropout_seeds: one for each sample.
    """

    inputs_BL: torch.Tensor
    labels_B: torch.Tensor | None
    places_M: torch.Tensor
    targets_M: torch.Tensor
    weights_M: torch.Tensor
    hidden_M: torch.Tensor
    buckets_M: torch.Tensor
    total_weight: float
    dropout_seeds: tuple[int, ...]

    def to(self, device: torch.device) -> "MaskedBatch":
        """The batch on `device`; from pinned memory the copy does not wait."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.pin_memory().to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


class Masker:
    """Turns token batches into masked ones.

    Args:
        recipe: masking, labels and loss settings, and the seed.
        mask_token_id, null_label: of the model; `null_label=None` where it has no classes.
        grouped: what the model masks of tokens (B, N): groups (B, L) of their bits; None: the tokens themselves.
    """

    def __init__(
        self,
        recipe: Recipe | CriticRecipe,
        mask_token_id: int,
        null_label: int | None,
        grouped: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.recipe, self.mask_token_id, self.null_label = recipe, mask_token_id, null_label
        self.grouped = grouped

    def ratios(self, numbers_B: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Mask ratios (B,) of samples at the given places of the training stream."""
        recipe = self.recipe
        return training_ratios(
            recipe.seed,
            numbers_B,
            recipe.mask_schedule,
            num_tokens,
            power=recipe.mask_schedule_power,
            samples_per_draw=recipe.batch_size if recipe.mask_ratio_per == "batch" else 1,
            min_ratio=recipe.min_mask_ratio,
        )

    def masks(self, numbers_B: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ratios_B, masked_BL) for samples at the given places of the training stream."""
        recipe, ratios_B = self.recipe, self.ratios(numbers_B, num_tokens)
        masked_BL = training_masks(
            recipe.seed, numbers_B, ratios_B, num_tokens, kind=recipe.mask_kind, rounding=recipe.mask_rounding
        )
        return ratios_B, masked_BL

    def total_weight(self, number: int, num_tokens: int) -> float:
        """Sum of the loss weights over the global batch that holds place `number` of the stream.

        Where it follows from the mask ratios, the masks of other processes' samples are not drawn.
        """
        recipe = self.recipe
        first = number // recipe.batch_size * recipe.batch_size
        whole_G = torch.arange(first, first + recipe.batch_size)
        if recipe.loss_on == "all":
            total = float(recipe.batch_size * num_tokens)
        elif recipe.loss_on == "masked" and recipe.mask_kind == "exact":
            total = float(exact_counts(self.ratios(whole_G, num_tokens), num_tokens, recipe.mask_rounding).sum())
        else:
            masked_GL = self.masks(whole_G, num_tokens)[1]
            total = token_weights(masked_GL, recipe.loss_on, recipe.unmasked_weight).sum().item()
        return max(total, 1e-6)

    def split(self, batch: Any, parts: int) -> list[MaskedBatch]:
        """A token batch as `parts` masked ones for gradient accumulation; their losses add up to the whole one's."""
        tokens_BL = batch.tokens_BL if self.grouped is None else self.grouped(batch.tokens_BL)
        total = self.total_weight(int(batch.indices_B[0]), tokens_BL.shape[1])
        pieces = zip(*(t.tensor_split(parts) for t in (tokens_BL, batch.labels_B, batch.indices_B)), strict=True)
        return [self._masked(tokens, labels, numbers, total) for tokens, labels, numbers in pieces if len(tokens)]

    def _masked(
        self, tokens_BL: torch.Tensor, labels_B: torch.Tensor, numbers_B: torch.Tensor, total: float
    ) -> MaskedBatch:
        """The masked batch of samples whose places in the stream are `numbers_B`."""
        recipe, num_tokens = self.recipe, tokens_BL.shape[1]
        ratios_B, masked_BL = self.masks(numbers_B, num_tokens)
        weights_BL = token_weights(masked_BL, recipe.loss_on, recipe.unmasked_weight)
        places_M = weights_BL.flatten().nonzero()[:, 0]
        if self.null_label is not None:
            labels_B = torch.where(labels_B < 0, self.null_label, labels_B)  # some samples may have no class
            labels_B = dropped_labels(recipe.seed, numbers_B, labels_B, self.null_label, recipe.label_drop)
        buckets_B = (ratios_B * NUM_BUCKETS).long().clamp(max=NUM_BUCKETS - 1)
        return MaskedBatch(
            inputs_BL=tokens_BL.masked_fill(masked_BL, self.mask_token_id),
            labels_B=None if self.null_label is None else labels_B,
            places_M=places_M,
            targets_M=tokens_BL.flatten()[places_M],
            weights_M=weights_BL.flatten()[places_M],
            hidden_M=masked_BL.flatten()[places_M].float(),
            buckets_M=buckets_B[places_M // num_tokens],
            total_weight=total,
            dropout_seeds=tuple(rng.dropout_seeds(recipe.seed, numbers_B)),
        )


def masked_steps(
    batches: Iterable[Any], masker: Masker, parts: int, device: torch.device
) -> Iterator[list[MaskedBatch]]:
    """One list of masked micro-batches a training step, for ever; run it in a read-ahead thread."""
    for batch in batches:
        yield [piece.to(device) for piece in masker.split(batch, parts)]
