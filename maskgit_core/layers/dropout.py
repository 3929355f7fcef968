"""Dropout that is cheap on CPUs: masks from 16 random bits an element, attention that never converts them to floats.

PyTorch's CPU kernels draw a float per element and convert masks to floats; in a small transformer that is a quarter of
a training step. On GPUs, and in compiled blocks, PyTorch's own fused kernels are used. The rate is exact to 2^-16.

Inside `per_sample` what is dropped of a sample is a function of its own seed: the same in any batch and any process.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
import torch.nn.functional as F

from maskgit_core.layers.reuse import exchanged

_generators: ContextVar[tuple[torch.Generator, ...]] = ContextVar("generators", default=())


@contextlib.contextmanager
def per_sample(seeds: Sequence[int]) -> Iterator[None]:
    """On CPUs, draws for each of `len(seeds)` samples (the first dimension) from a generator of its own.

    Args:
        seeds: in [0, 2^63), one a sample.
    """
    token = _generators.set(tuple(torch.Generator().manual_seed(seed) for seed in seeds))
    try:
        yield
    finally:
        _generators.reset(token)


def replayed() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of a computation and of its repetition, in which `per_sample` draws the same.

    The `context_fn` of `torch.utils.checkpoint`.
    """
    return contextlib.nullcontext(), _from_states([generator.get_state() for generator in _generators.get()])


@contextlib.contextmanager
def _from_states(states: Sequence[torch.Tensor]) -> Iterator[None]:
    generators = tuple(torch.Generator() for _ in states)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    token = _generators.set(generators)
    try:
        yield
    finally:
        _generators.reset(token)


def drop_mask(shape: torch.Size, rate: float) -> torch.Tensor:
    """True, with probability `rate`, where an element is dropped: bool on the CPU; see `per_sample`."""
    generators = _generators.get()
    rows = len(generators) if generators and len(generators) == shape[0] else 1
    count = shape.numel() // rows  # elements of a row: a sample, or all of them
    words = torch.empty((rows, (count + 3) // 4), dtype=torch.int64)
    if rows == len(generators):
        for row, generator in zip(words.unbind(), generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
    else:
        words.random_(-(2**63), None)
    return (words.view(torch.int16)[:, :count] < round(rate * 65536) - 32768).view(shape)


def dropout(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """`x` with a share `rate` of its elements set to zero and the rest scaled by 1 / (1 - rate), while training."""
    if not training or rate == 0.0 or not _is_cheap_on(x):
        return F.dropout(x, rate, training)
    return x.masked_fill(drop_mask(x.shape, rate), 0.0) * (1.0 / (1.0 - rate))


#: Up to so many tokens bf16 attention is trained as plain products on CPUs.
PLAIN_TOKENS = 256


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v with dropout on the probabilities while training; (B, H, L, d) each."""
    if not training:
        k, v = exchanged(k, v)
    plain = training and _is_cheap_on(q)
    if plain and rate == 0.0 and q.dtype == torch.bfloat16 and q.shape[-2] <= PLAIN_TOKENS:
        # the CPU kernel's backward pass takes five times as long as these products (65 tokens, heads of 32)
        shares: torch.Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
        return shares @ v
    if not plain or rate == 0.0:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate if training else 0.0)
    weights: torch.Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return weights.masked_fill(drop_mask(weights.shape, rate), 0.0) @ (v * (1.0 / (1.0 - rate)))


def _is_cheap_on(x: torch.Tensor) -> bool:
    """Whether random words pay there: not on GPUs, nor where a compiler draws the mask within its own kernel."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
