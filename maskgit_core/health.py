"""Signs of a training's health: a loss that went wrong, and the likelihood of held-out tokens at fixed mask ratios.

Shapes: N held-out samples, L tokens.
"""

import math
from typing import Any

import numpy as np
import torch

from maskgit_core import rng
from maskgit_core.errors import MaskgitError
from maskgit_core.losses import token_cross_entropy
from maskgit_core.masking import training_masks

RATIOS = (0.25, 0.5, 0.75, 1.0)
MAX_HELD_OUT = 1024


class DivergedError(MaskgitError):
    """The loss is not a number or far above that of guessing; the last good checkpoint is kept."""


def check_loss(loss: float, step: int, codebook_size: int, last_good: str) -> None:
    """Raises `DivergedError` for a loss that is not finite, or half again as high as that of uniform guessing."""
    limit = 1.5 * math.log(codebook_size) + 1.0
    if math.isfinite(loss) and loss <= limit:
        return
    raise DivergedError(
        f"train: the loss is {loss:.4g} at step {step} (uniform guessing has {math.log(codebook_size):.4g}); stopped, "
        f"{last_good} is kept; lower train.lr, or set train.grad_clip or a longer train.warmup_steps"
    )


class FirstSamples:
    """The first `count` samples of token shards, as shards; the rest is held out."""

    def __init__(self, shards: Any, count: int) -> None:
        self._shards, self._count = shards, count

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_shards" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._shards, name)


class HeldOut:
    """Samples that training never sees, with masks that never change.

    Args:
        shards: token shards. first: index of the first held-out sample. seed: of the masks.
    """

    def __init__(self, shards: Any, first: int, seed: int, device: str) -> None:
        indices_N = np.arange(first, min(len(shards), first + MAX_HELD_OUT))
        tokens_NL, labels_N = shards.gather(indices_N)
        self.tokens_NL, self.labels_N = torch.from_numpy(tokens_NL.copy()), torch.from_numpy(labels_N.copy())
        self._numbers_N = torch.from_numpy(indices_N)
        self._seed, self._device = int(rng.sample_seeds(seed, torch.tensor([-1]))[0]), device

    @torch.no_grad()
    def nll(self, model: Any, batch_size: int = 256) -> dict[str, float]:
        """Mean negative log-likelihood, in nats a masked token, with exactly this share of the tokens masked."""
        was_training = model.training
        model.eval()
        found = {f"held_out_nll_{ratio:.0%}".rstrip("%"): self._at(model, ratio, batch_size) for ratio in RATIOS}
        model.train(was_training)
        return found

    def _at(self, model: Any, ratio: float, batch_size: int) -> float:
        num_tokens = self.tokens_NL.shape[1]
        ratios_N = torch.full((len(self.tokens_NL),), ratio)
        masked_NL = training_masks(self._seed, self._numbers_N, ratios_N, num_tokens)
        total = torch.zeros((), device=self._device)
        for rows in torch.arange(len(self.tokens_NL)).split(batch_size):
            tokens, masked = self.tokens_NL[rows].to(self._device), masked_NL[rows].to(self._device)
            labels = None if model.num_classes is None else self.labels_N[rows].to(self._device)
            if labels is not None:
                labels = torch.where(labels < 0, model.null_label, labels)
            features = model.features(tokens.masked_fill(masked, model.mask_token_id), labels, masked)
            total += token_cross_entropy(model.logits(features), tokens[masked]).sum()
        return float(total / masked_NL.sum())
