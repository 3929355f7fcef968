"""Kernel distance (KID, Binkowski et al. 2018, arXiv:1801.01401): unbiased MMD^2 with the kernel (x.y / D + 1)^3.

Mean and standard deviation over random subsets; the draws are numpy's `RandomState(2020)`, as in torch-fidelity, so the
numbers are the same. N samples, M a subset's size, D features.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from maskgit_core.errors import DataError
from maskgit_core.hints import Range


class Metric:
    """Kernel distance of features to a reference's.

    Features are not streamed: subsets are drawn from all of them. Give memory-mapped arrays for large sets; only one
    subset of each is in memory at a time.

    Args:
        num_subsets, subset_size: how many subsets of how many samples.
        seed: of the draws.
    """

    def __init__(
        self,
        *,
        num_subsets: Annotated[int, Range(1, 10_000)] = 100,
        subset_size: Annotated[int, Range(2, 100_000)] = 1000,
        seed: int = 2020,
    ) -> None:
        self.num_subsets, self.subset_size, self.seed = num_subsets, subset_size, seed
        self._features: list[np.ndarray] = []
        self._references: list[np.ndarray] = []

    def update(self, features_ND: Tensor | np.ndarray, reference_ND: Tensor | np.ndarray | None = None) -> None:
        """Adds features (N, D), and reference features where given."""
        self._features.append(np.asarray(features_ND))
        if reference_ND is not None:
            self._references.append(np.asarray(reference_ND))

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen, after this one's."""
        self._features += other._features
        self._references += other._references

    def compute(self) -> dict[str, float]:
        """`kernel_distance` and `kernel_distance_std` over the subsets."""
        if not self._features or not self._references:
            raise DataError("kernel distance: features of samples and of the reference are needed; one is missing")
        features, reference = _joined(self._features), _joined(self._references)
        if min(len(features), len(reference)) < self.subset_size:
            raise DataError(
                f"kernel distance: subsets of {self.subset_size} from {len(features)} samples and {len(reference)} "
                "reference images; give more images or a smaller subset_size"
            )
        draws = np.random.RandomState(self.seed)
        values = []
        for _ in range(self.num_subsets):
            x_MD = features[np.sort(draws.choice(len(features), self.subset_size, replace=False))]
            y_MD = reference[np.sort(draws.choice(len(reference), self.subset_size, replace=False))]
            values.append(_unbiased(torch.from_numpy(x_MD).double(), torch.from_numpy(y_MD).double()))
        return {"kernel_distance": float(np.mean(values)), "kernel_distance_std": float(np.std(values))}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _unbiased(x_MD: Tensor, y_MD: Tensor) -> float:
    """MMD^2 without the diagonals of the two sets' own kernels; the order of rows does not matter."""
    m = len(x_MD)
    xx, yy, xy = _kernel(x_MD, x_MD), _kernel(y_MD, y_MD), _kernel(x_MD, y_MD)
    own = (xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(own - 2 * xy.sum() / (m * m))


def _kernel(x_MD: Tensor, y_MD: Tensor) -> Tensor:
    return (x_MD @ y_MD.T / x_MD.shape[1] + 1) ** 3
