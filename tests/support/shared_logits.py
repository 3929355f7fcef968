"""A stand-in for a transformer whose logits are exact: whole numbers of 1/64, functions of class, place and context.

The reference samplers were run once on the same logits and the same noise (`rng`), so that final tokens can be compared
bit by bit without anybody's weights.
"""

from typing import Any

import torch


def shared_logits(tokens_BL: torch.Tensor, labels_B: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Logits (B, L, K) in [-4, 4) for tokens in [0, K], K being the mask."""
    places_L, values_K = torch.arange(tokens_BL.shape[1]), torch.arange(codebook_size)
    known_BL = torch.where(tokens_BL == codebook_size, 0, (tokens_BL + 1) * (places_L + 3))
    context_B = known_BL.sum(1) % 1009
    near_BL = torch.cat([known_BL[:, 1:], known_BL[:, :1]], dim=1) % 97
    seeds_BL = places_L[None] * 7919 + labels_B[:, None] * 12289 + context_B[:, None] * 389 + near_BL * 24593
    mixed_BLK = (seeds_BL[..., None] + values_K * 104729) * (values_K + 17) % 8191
    return (mixed_BLK % 512 - 256).float() / 64


class SharedLogits:
    """The model contract around `shared_logits`.

    Args:
        codebook_size: K of the positions. num_tokens: L positions. splits: positions a token of the tokenizer.
    """

    def __init__(self, codebook_size: int, num_tokens: int, splits: int = 1) -> None:
        self.codebook_size = self.mask_token_id = codebook_size
        self.num_tokens, self.splits = num_tokens, splits
        self.num_classes = self.null_label = 10

    def features(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor, wanted_BL: torch.Tensor | None = None) -> Any:
        logits_BLK = shared_logits(tokens_BL, labels_B, self.codebook_size)
        return logits_BLK if wanted_BL is None else logits_BLK[wanted_BL]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features
