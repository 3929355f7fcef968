"""Random numbers as a function of what they are for, not of when they are drawn.

Every draw is addressed by (seed, number of the sample, stream, counter) and computed by hashing that address with the
SplitMix64 finalizer (Steele, Lea, Flood 2014) in 64-bit integer tensors. So a sample's mask, label drop or Gumbel noise
is the same for any batch size, number of processes, device or restart, and nothing has to be stored to resume.

Shapes: B samples, N draws per sample.
"""

import torch

#: Streams: what a draw is for. Two streams of one sample are independent.
RATIO, MASK, LABEL_DROP, TOKEN, CHOICE, ORDER, INIT, STEP, DROPOUT = range(9)

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def _mixed(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def fold(keys: torch.Tensor, number: int | torch.Tensor) -> torch.Tensor:
    """Keys derived from `keys` (int64, any shape) and a number; different numbers give independent keys."""
    if isinstance(number, int):
        offset: int | torch.Tensor = _signed((number + 1) * _GOLDEN)
    else:
        offset = (number.to(torch.int64) + 1) * _signed(_GOLDEN)
    return _mixed(_mixed(keys) + offset)


def sample_seeds(seed: int, numbers_B: torch.Tensor) -> torch.Tensor:
    """One seed per sample: int64 (B,), from the run's seed and the samples' numbers (int64, any order)."""
    base = torch.full_like(numbers_B, _signed(seed), dtype=torch.int64)
    return fold(base, numbers_B)


def dropout_seeds(seed: int, numbers_B: torch.Tensor) -> list[int]:
    """One seed in [0, 2**63) for the dropout of each sample, from its place in the training stream (int64 (B,))."""
    return [value & 0x7FFFFFFFFFFFFFFF for value in fold(sample_seeds(seed, numbers_B), DROPOUT).tolist()]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed in [0, 2**63) for `torch.manual_seed` at one optimizer step of one process (dropout on GPUs)."""
    key = fold(fold(fold(torch.tensor(_signed(seed)), STEP), step), rank)
    return int(key) & 0x7FFFFFFFFFFFFFFF


def uniforms(seeds_B: torch.Tensor, stream: int, count: int, counter: int = 0) -> torch.Tensor:
    """Uniform draws in the open interval (0, 1): float32 (B, N).

    Args:
        seeds_B: int64 (B,), one per sample.
        stream: what for; one of the constants above.
        count: N draws per sample.
        counter: which set of draws of the stream, e.g. the sampler's step.
    """
    keys_B1 = fold(fold(seeds_B, stream), counter)[:, None]
    places_N = torch.arange(count, device=seeds_B.device)
    # 23 bits and a half: every value is exact in float32, none is 0 or 1
    return ((_shifted(fold(keys_B1, places_N[None]), 41)).float() + 0.5) * 2.0**-23


def gumbels(seeds_B: torch.Tensor, stream: int, count: int, counter: int = 0) -> torch.Tensor:
    """Standard Gumbel draws -log(-log u): float32 (B, N). Computed in float64, so that no vector width shows."""
    return -torch.log(-torch.log(uniforms(seeds_B, stream, count, counter).double())).float()
