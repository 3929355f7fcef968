"""Inception score (Salimans et al. 2016, arXiv:1606.03498): exp of the mean KL(p(y|x) || p(y)), over splits.

The published score is taken over consecutive chunks of the file, so it depends on the samples' order (a file sorted by
class scores 62 where the same images shuffled score 298). Here images are assigned to splits by a hash of their pixels,
by torch-fidelity's fixed shuffle, or by their place in the file. N samples, K classes of the network.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from maskgit_core.errors import DataError
from maskgit_core.hints import Range

#: torch-fidelity's seed for the shuffle of samples.
SHUFFLE_SEED = 2020
Order = Literal["content", "torch_fidelity", "file"]


class Metric:
    """Streams logits; memory is 2 K doubles a split, whatever N.

    Args:
        num_splits: chunks of which mean and standard deviation are given.
    """

    def __init__(self, *, num_splits: Annotated[int, Range(1, 1000)] = 10) -> None:
        self.num_splits = num_splits
        self.count = 0
        self._counts = [0] * num_splits
        self._entropies = [0.0] * num_splits  # sum over samples of sum_y p log p
        self._totals: list[Tensor | None] = [None] * num_splits  # sum over samples of p

    def update(self, logits_NK: Tensor, splits_N: Tensor | None = None) -> None:
        """Adds samples: logits (N, K) and the split of each (int64, N); None: all in split 0 (of one)."""
        if splits_N is None:
            if self.num_splits != 1:
                raise DataError("inception score: the split of each sample is needed where there are several splits")
            splits_N = torch.zeros(len(logits_NK), dtype=torch.int64)
        log_p_NK = logits_NK.double().log_softmax(dim=1)
        p_NK = log_p_NK.exp()
        entropy_N = (p_NK * log_p_NK).sum(dim=1)
        for split in splits_N.unique().tolist():
            chosen = splits_N == split
            self._add(split, int(chosen.sum()), float(entropy_N[chosen].sum()), p_NK[chosen].sum(dim=0))

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen, split by split."""
        for split, total in enumerate(other._totals):
            if total is not None:
                self._add(split, other._counts[split], other._entropies[split], total)

    def _add(self, split: int, count: int, entropy: float, total_K: Tensor) -> None:
        before = self._totals[split]
        self.count += count
        self._counts[split] += count
        self._entropies[split] += entropy
        self._totals[split] = total_K if before is None else before + total_K

    def compute(self) -> dict[str, float]:
        """`inception_score` and `inception_score_std` over the splits."""
        if not all(self._counts):
            raise DataError(
                f"inception score: {self.count} samples leave one of {self.num_splits} splits empty; give more samples"
            )
        scores = []
        for count, entropy, total_K in zip(self._counts, self._entropies, self._totals, strict=True):
            assert total_K is not None
            mean_K = total_K / count
            # mean KL = (1/n) sum_i sum_y p log p - sum_y q log q; terms with q = 0 are 0
            scores.append(math.exp(entropy / count - float(torch.special.xlogy(mean_K, mean_K).sum())))
        return {"inception_score": float(np.mean(scores)), "inception_score_std": float(np.std(scores))}


def pixel_hashes(images_BCHW: Tensor) -> Tensor:
    """int64 (B,): the first 8 bytes of the blake2b hash of each image's pixels."""
    hashes = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images_BCHW.cpu()]
    return torch.tensor([int.from_bytes(value, "little", signed=True) for value in hashes], dtype=torch.int64)


def splits_of_size(count: int, split_size: int) -> int:
    """How many splits of `split_size` samples there are, the last of them perhaps smaller."""
    return -(-count // split_size)


def assign_splits(
    count: int, num_splits: int, order: Order, hashes_N: Tensor | None = None, split_size: int | None = None
) -> Tensor:
    """The split of each sample (int64, N), in equal shares, or `split_size` samples in each but the last (ADM).

    `content`: by the rank of its hash, so that the order of the file does not matter. `torch_fidelity`: by its place
    after torch-fidelity's fixed shuffle (which does depend on the order of the file). `file`: by its place in the file,
    as ADM's script does.
    """
    if order == "content":
        if hashes_N is None:
            raise DataError("inception score: the order `content` needs the hash of each image")
        place_N = torch.empty(count, dtype=torch.int64)
        place_N[torch.argsort(hashes_N, stable=True)] = torch.arange(count)
    elif order == "file":
        place_N = torch.arange(count)
    else:
        shuffled = np.random.RandomState(SHUFFLE_SEED).permutation(count)
        place_N = torch.empty(count, dtype=torch.int64)
        place_N[torch.from_numpy(shuffled)] = torch.arange(count)
    if split_size is not None:
        return place_N // split_size
    edges = torch.tensor([i * count // num_splits for i in range(1, num_splits)], dtype=torch.int64)
    return torch.bucketize(place_N, edges, right=True)
