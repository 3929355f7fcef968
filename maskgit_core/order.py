"""The order of training samples, as a pure function of (seed, position).

A training stream is endless: epoch after epoch, each a full permutation of the data set, each sample once an epoch. The
permutation is never stored. It is computed for any positions asked for, in constant time, so that a run resumes
anywhere at once and the order does not depend on ranks, workers or library versions.

The permutation is a Feistel network on the mixed-radix grid a × b >= N with cycle walking (Black & Rogaway, "Ciphers
with arbitrary finite domains", 2002), keyed by hashes of seed and epoch.

Shapes: positions of any shape, int64; all results int64 of that shape.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of SplitMix64, Steele et al. 2014); any int, result in [0, 2^64)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _hash32(values: np.ndarray, key: int) -> np.ndarray:
    """Hash of each value (< 2^32) under a key: uint64 numbers in [0, 2^32)."""
    mixed = values * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= np.uint64(key)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed >>= np.uint64(32)
    return mixed


def _rounds(values: np.ndarray, a: int, b: int, keys: list[int]) -> np.ndarray:
    """One pass of the network over values in [0, a * b), uint64."""
    left, right = np.divmod(values, np.uint64(b))
    for number, key in enumerate(keys):
        source, radix = (right, a) if number % 2 == 0 else (left, b)
        shift = (_hash32(source, key) * np.uint64(radix)) >> np.uint64(32)
        target = left if number % 2 == 0 else right
        target += shift
        target -= np.where(target >= np.uint64(radix), np.uint64(radix), np.uint64(0))
    return left * np.uint64(b) + right


def permute(positions: np.ndarray, num_samples: int, key: int) -> np.ndarray:
    """Images of `positions` in [0, num_samples) under the permutation named by `key`.

    Args:
        positions: int64 array with values in [0, num_samples).
        num_samples: size of the permuted set, in [1, 2^40].
        key: any integer; each gives another permutation.
    """
    a = math.isqrt(num_samples - 1) + 1
    b = -(-num_samples // a)
    keys = [mix(mix(key) + number) for number in range(ROUNDS)]
    values = _rounds(np.asarray(positions, dtype=np.uint64).ravel(), a, b, keys)
    outside = np.nonzero(values >= num_samples)[0]
    while outside.size:  # at most b - 1 of the a * b cells lie outside, so this ends at once
        values[outside] = _rounds(values[outside], a, b, keys)
        outside = outside[values[outside] >= num_samples]
    return values.astype(np.int64).reshape(np.shape(positions))


def samples_at(
    seed: int, positions: np.ndarray, num_samples: int, num_variants: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Which sample, and which of its variants, stand at any positions of the training stream.

    Args:
        seed: of the order, any integer.
        positions: int64, >= 0, any shape; position p lies in epoch p // num_samples.
        num_samples: size of the data set.
        num_variants: how many variants (flips, crops) each sample has; one is drawn per epoch, uniformly.

    Returns:
        (samples, variants): int64 arrays of the shape of `positions`.
    """
    positions = np.asarray(positions, dtype=np.int64)
    samples = np.empty(positions.shape, dtype=np.int64)
    variants = np.zeros(positions.shape, dtype=np.int64)
    if not positions.size:
        return samples, variants
    epochs, offsets = np.divmod(positions, num_samples)
    first, last = int(epochs.min()), int(epochs.max())
    for epoch in [first] if first == last else np.unique(epochs).tolist():
        here = ... if first == last else epochs == epoch
        key = mix(mix(seed) + epoch)
        found = permute(offsets[here], num_samples, key)
        samples[here] = found
        if num_variants > 1:
            drawn = _hash32(_hash32(found.astype(np.uint64), mix(key + 1)), mix(key + 2))
            variants[here] = (drawn * np.uint64(num_variants)) >> np.uint64(32)
    return samples, variants


def sample_ids(
    seed: int, start: int, count: int, num_samples: int, num_variants: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """`samples_at` for the positions start ... start + count - 1: two int64 arrays of shape (count,)."""
    return samples_at(seed, np.arange(start, start + count, dtype=np.int64), num_samples, num_variants)
