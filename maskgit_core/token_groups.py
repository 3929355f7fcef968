"""Tokens as bits, and as groups of bits that a transformer masks and draws one by one (MaskBit, Weber et al. 2024).

A token of `bits` bits is drawn as `splits` groups of bits / splits each: group g of token n is position n * splits + g
of the model, so a grid of (H, W) tokens is (H, W, splits) groups for a sampler. Shards, tokenizers and pictures know
whole tokens only; models without groups have one group a token, and nothing here changes anything for them.

Shapes: B samples, N tokens, L = N * splits groups.
"""

from typing import Any

import torch


def bits_of(ids: torch.Tensor, num_bits: int) -> torch.Tensor:
    """The bits of ids in [0, 2^num_bits), lowest first, as -1 and 1: float32 (..., num_bits)."""
    powers = 2 ** torch.arange(num_bits, device=ids.device)
    return (ids[..., None].bitwise_and(powers) != 0).float() * 2 - 1


def ids_of(bits: torch.Tensor) -> torch.Tensor:
    """The ids whose bits, lowest first, are these: int64 (...) of bool (..., num_bits)."""
    return (bits.long() * 2 ** torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def splits_of(model: Any) -> int:
    """How many groups the model draws for one token of the tokenizer; 1 for most."""
    return int(getattr(model, "splits", 1))


def whole_codebook(model: Any) -> int:
    """The number of tokens, K, of the tokenizer that the model was made for."""
    size: int = int(model.codebook_size) ** splits_of(model)
    return size


def sampling_grid(model: Any, grid: tuple[int, int]) -> tuple[int, ...]:
    """The grid (H, W) of tokens as samplers take it: the same, or (H, W, splits)."""
    splits = splits_of(model)
    return grid if splits == 1 else (*grid, splits)


def split_tokens(model: Any, tokens_BN: torch.Tensor) -> torch.Tensor:
    """Tokens in [0, K) as the model's groups (B, L), lowest bits first; -1 (unknown) stays -1 in all groups."""
    splits = splits_of(model)
    if splits == 1:
        return tokens_BN
    powers = model.codebook_size ** torch.arange(splits, device=tokens_BN.device)
    groups_BNS = (tokens_BN[..., None] // powers) % model.codebook_size
    return torch.where(tokens_BN[..., None] < 0, tokens_BN[..., None], groups_BNS).flatten(-2)


def joined_tokens(model: Any, groups_BL: torch.Tensor) -> torch.Tensor:
    """The tokens (B, N) that the model's groups (B, L) make; undoes `split_tokens`."""
    splits = splits_of(model)
    if splits == 1:
        return groups_BL
    powers = model.codebook_size ** torch.arange(splits, device=groups_BL.device)
    tokens_BN: torch.Tensor = (groups_BL.unflatten(-1, (-1, splits)) * powers).sum(-1)
    return tokens_BN
