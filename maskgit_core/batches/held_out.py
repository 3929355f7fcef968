"""Samples that training never sees: which they are, and how likely a model finds their tokens at fixed mask ratios.

Shapes: N held-out samples, L tokens.
"""

from typing import Any

import numpy as np
import torch

from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.losses import token_cross_entropy
from maskgit_core.masking import training_masks
from maskgit_core.order import mix, permute, samples_at
from maskgit_core.token_groups import split_tokens

RATIOS = (0.25, 0.5, 0.75, 1.0)
#: At most so many are looked at; the others are left out of training all the same.
MAX_HELD_OUT = 1024
_SEED = 0  # the same samples and masks for every training, so that their likelihoods can be compared


class Split:
    """Samples of a dataset that are trained on and those held out: scattered, as classes are often contiguous.

    Args:
        num_samples, num_variants: of the dataset.
        share: to hold out, in (0, 1); at least one sample is.

    Raises:
        ConfigError: nothing would be left to train on.
    """

    def __init__(self, num_samples: int, num_variants: int, share: float) -> None:
        self.num_training = min(max(1, round(num_samples * (1.0 - share))), num_samples - 1)
        if self.num_training < 1:
            raise ConfigError(
                f"train.held_out_share: {share:g} of {num_samples} samples leaves nothing to train on; lower it"
            )
        self.num_samples, self.num_variants = num_samples, num_variants

    def held_out(self) -> np.ndarray:
        """Indices (N,) of held-out samples, at most `MAX_HELD_OUT`; int64."""
        return self._scattered(np.arange(self.num_training, min(self.num_samples, self.num_training + MAX_HELD_OUT)))

    def samples_at(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`maskgit_core.order.samples_at` over the samples that are trained on."""
        numbers, variants = samples_at(seed, positions, self.num_training, self.num_variants)
        return self._scattered(numbers), variants

    def _scattered(self, numbers: np.ndarray) -> np.ndarray:
        return permute(numbers, self.num_samples, mix(_SEED)).astype(np.int64)


class HeldOut:
    """Tokens that training never sees, with masks that never change.

    Args:
        tokens_NL: int64. labels_N: int64, -1 for "no class". indices_N: of the samples in their dataset.
    """

    def __init__(self, tokens_NL: torch.Tensor, labels_N: torch.Tensor, indices_N: np.ndarray, device: str) -> None:
        self.tokens_NL, self.labels_N, self.indices_N, self._device = tokens_NL, labels_N, indices_N, device
        self._seed = int(rng.sample_seeds(_SEED, torch.tensor([-1]))[0])

    @torch.no_grad()
    def nll(self, model: Any, batch_size: int = 256) -> dict[str, float]:
        """Mean negative log-likelihood, in nats a masked token, with exactly this share of the tokens masked."""
        was_training = model.training
        model.eval()
        losses = {f"held_out_nll_{ratio:.0%}".rstrip("%"): self._at(model, ratio, batch_size) for ratio in RATIOS}
        model.train(was_training)
        return losses

    def _at(self, model: Any, ratio: float, batch_size: int) -> float:
        tokens_NL = split_tokens(model, self.tokens_NL)
        num_tokens = tokens_NL.shape[1]
        ratios_N = torch.full((len(tokens_NL),), ratio)
        masked_NL = training_masks(self._seed, torch.from_numpy(self.indices_N), ratios_N, num_tokens)
        total = torch.zeros((), device=self._device)
        for rows in torch.arange(len(tokens_NL)).split(batch_size):
            tokens, masked = tokens_NL[rows].to(self._device), masked_NL[rows].to(self._device)
            labels = None if model.num_classes is None else self.labels_N[rows].to(self._device)
            if labels is not None:
                labels = torch.where(labels < 0, model.null_label, labels)
            features = model.features(tokens.masked_fill(masked, model.mask_token_id), labels, masked)
            total += token_cross_entropy(model.logits(features), tokens[masked]).sum()
        return float(total / masked_NL.sum())
