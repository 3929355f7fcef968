"""Weights made from (key name, shape, seed), so that a reference implementation can be run once on the same ones.

Normal draws of deviation 0.02 from NumPy's Philox, keyed by the first eight bytes (big-endian) of sha256("seed:name");
one-dimensional tensors whose name ends in `weight` are norms and get 1 added.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch


def made(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """One tensor, float32."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    draws = np.random.Generator(np.random.Philox(key)).standard_normal(size=tuple(shape), dtype=np.float32)
    tensor = torch.from_numpy(draws) * 0.02
    return tensor + 1 if tensor.dim() == 1 and name.endswith("weight") else tensor


def fill(module: torch.nn.Module, seed: int = 0, tied: Mapping[str, str] | None = None) -> None:
    """Loads made weights strictly; `tied` names keys that hold another key's weights."""
    state = {name: made(name, tuple(value.shape), seed) for name, value in module.state_dict().items()}
    for name, other in (tied or {}).items():
        state[name] = state[other]
    module.load_state_dict(state, strict=True)


def made_inputs(model: torch.nn.Module, labels: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of tokens of which three fifths are masked, and their labels."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.codebook_size, (2, model.num_tokens), generator=generator)
    masked = torch.rand(2, model.num_tokens, generator=generator) < 0.6
    return tokens.masked_fill(masked, model.mask_token_id), torch.tensor(labels)
