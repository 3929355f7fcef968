"""Random weights that anyone can make again: each tensor is a function of (its published name, its shape, a seed).

The reference implementations were run on exactly these (see `tests/maskgit_core/tokenizers/goldens/tokenizers.json`).
Raw bits of PCG64 are stable across versions and machines; they become uniform numbers of the variance given below.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch


def raw_uniform(name: str, count: int, seed: int) -> np.ndarray:
    """`count` float32 numbers in [-1, 1), a function of name and seed."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw((count + 1) // 2).view(np.uint32)[:count]
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """One tensor: products keep variance 1, scales lie around 1, offsets are small, codes have variance 1."""
    values = raw_uniform(name, math.prod(shape), seed).reshape(shape)
    if name.endswith("embedding.weight"):
        values = values * math.sqrt(3)
    elif len(shape) > 1:
        values = values * math.sqrt(3 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.2 * values
    elif name.endswith("codebook_used"):
        values = np.abs(values) * 100
    else:
        values = 0.1 * values
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def state_dict(layout: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A whole state dict for published names and shapes."""
    return {name: tensor(name, shape, seed) for name, shape in layout.items()}


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    """A test image (1, 3, height, width) in [-1, 1]: smooth waves with some noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(0.05 * (c + 1) * x + 0.03 * (c + 2) * y + seed) for c in range(3)])
    noise = torch.from_numpy(raw_uniform("picture", 3 * height * width, seed)).view(3, height, width)
    return (0.7 * waves + 0.3 * noise).clamp(-1, 1)[None]
