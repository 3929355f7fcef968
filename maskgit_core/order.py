"""The order of training samples, as a pure function of (seed, position).

A training stream is endless: epoch after epoch, each a full permutation of the dataset, each sample once an epoch. The
permutation is never stored. It is computed for any positions asked for, in constant time, so that a run resumes
anywhere at once and the order does not depend on ranks, workers or library versions.

The permutation is a Feistel network on the mixed-radix grid a × b >= N with cycle walking (Black & Rogaway, "Ciphers
with arbitrary finite domains", 2002), keyed by hashes of seed and epoch.

Shapes: positions of any shape, int64; all results int64 of that shape.
"""

from __future__ import annotations

import math

import numpy as np

from maskgit_core.errors import DataError

ROUNDS = 8
MAX_SAMPLES = 1 << 32  # so that each half of the network fits 16 bits and all products fit 32
_MASK = (1 << 64) - 1
_U = np.uint32


def mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of SplitMix64, Steele et al. 2014); any int, result in [0, 2^64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _below(values: np.ndarray, key: int, radix: int) -> np.ndarray:
    """A number in [0, radix), radix <= 2^16, for each uint32 value, by a keyed 32-bit hash (as MurmurHash3 ends)."""
    hashed = values * _U(0x9E3779B1)
    hashed ^= _U(key & 0xFFFFFFFF)
    hashed ^= hashed >> _U(16)
    hashed *= _U(0x85EBCA6B)
    hashed += _U(key >> 32)
    hashed ^= hashed >> _U(13)
    hashed *= _U(0xC2B2AE35)
    hashed >>= _U(16)
    hashed *= _U(radix)
    hashed >>= _U(16)
    return hashed


def _rounds(values: np.ndarray, a: int, b: int, keys: list[int]) -> np.ndarray:
    """One pass of the network over values in [0, a * b), uint32."""
    left = values // _U(b)
    right = values - left * _U(b)
    for number, key in enumerate(keys):
        source, target, radix = (right, left, a) if number % 2 == 0 else (left, right, b)
        target += _below(source, key, radix)
        np.minimum(target, target - _U(radix), out=target)  # wraps around where target < radix
    left *= _U(b)
    left += right
    return left


def permute(positions: np.ndarray, num_samples: int, key: int) -> np.ndarray:
    """Images of `positions` in [0, num_samples) under the permutation named by `key`.

    Args:
        positions: integers in [0, num_samples), any shape.
        num_samples: size of the permuted set, in [1, 2^32].
        key: any integer; each gives another permutation.

    Returns:
        uint32 array of the shape of `positions`.
    """
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise DataError(f"num_samples: {num_samples} does not lie in [1, 2^32]")
    a = math.isqrt(num_samples - 1) + 1
    b = -(-num_samples // a)
    keys = [mix(mix(key) + number) for number in range(ROUNDS)]
    values = _rounds(np.asarray(positions).astype(_U).ravel(), a, b, keys)
    if a * b > num_samples:  # fewer than b cells lie outside, so walking on ends at once
        while (outside := np.nonzero(values >= num_samples)[0]).size:
            values[outside] = _rounds(values[outside], a, b, keys)
    return values.reshape(np.shape(positions))


def draw_variants(samples: np.ndarray, key: int, num_variants: int) -> np.ndarray:
    """Which variant of each sample an epoch shows: uniform numbers in [0, num_variants), `key` naming the epoch."""
    return _below(samples.astype(_U), mix(key + 1), num_variants)


def samples_at(
    seed: int, positions: np.ndarray, num_samples: int, num_variants: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The sample and its variant at any positions of the training stream.

    Args:
        seed: of the order, any integer.
        positions: int64, >= 0, any shape; position p is in epoch p // num_samples.
        num_samples: size of the dataset.
        num_variants: how many variants (flips, crops) each sample has, at most 2^16; one is drawn per epoch.

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
        permuted = permute(offsets[here], num_samples, key)
        samples[here] = permuted
        if num_variants > 1:
            variants[here] = draw_variants(permuted, key, num_variants)
    return samples, variants


def sample_ids(
    seed: int, start: int, count: int, num_samples: int, num_variants: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """`samples_at` for the positions start ... start + count - 1: two int64 arrays of shape (count,)."""
    return samples_at(seed, np.arange(start, start + count, dtype=np.int64), num_samples, num_variants)
