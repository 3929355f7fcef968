"""Cross-entropy on tokens: on the masked ones, on all, or on all with a small weight where nothing was masked.

Shapes: B samples, L tokens, M selected tokens, K codebook entries.
"""

from typing import Literal

import torch
import torch.nn.functional as F

LossOn = Literal["masked", "all", "weighted"]


def token_weights(masked_BL: torch.Tensor, loss_on: str, unmasked_weight: float = 0.1) -> torch.Tensor:
    """The weight of each token in the loss: float32 (B, L).

    `masked`: 1 where masked, else 0 (MaskGIT, eq. 1); `all`: 1; `weighted`: `unmasked_weight` where not masked.
    """
    weights_BL = masked_BL.float()
    if loss_on == "masked":
        return weights_BL
    return torch.where(masked_BL, 1.0, 1.0 if loss_on == "all" else unmasked_weight)


def token_cross_entropy(logits_MK: torch.Tensor, targets_M: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each token, natural logarithm: float32 (M,). Logits are taken to float32 first."""
    return F.cross_entropy(logits_MK.float(), targets_M, reduction="none", label_smoothing=label_smoothing)


def weighted_mean(losses_M: torch.Tensor, weights_M: torch.Tensor, total_weight: torch.Tensor | float) -> torch.Tensor:
    """sum(losses * weights) / total_weight: with the total of the *global* batch, parts of it add up exactly."""
    return (losses_M * weights_M).sum() / total_weight
