"""Precision, recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density, coverage (Naeem et al. 2020,
arXiv:2002.09797).

A set's manifold is the union of balls round its features, each reaching to the k-th nearest other feature of the set.
Precision: share of samples inside the reference's manifold. Recall: share of the reference inside the samples'.
Density: how many of the reference's balls contain a sample, over k. Coverage: share of those balls that hold a sample.

N samples, M reference images, D features. Work goes by blocks of rows, so memory is BLOCK^2, not N M.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from maskgit_core.errors import DataError
from maskgit_core.hints import Range

BLOCK = 4096


class Metric:
    """The four numbers of samples against a reference.

    Features may be memory-mapped arrays; blocks of them are read as they are needed.

    Args:
        num_neighbours: k of precision and recall (3 in the paper and in ADM's evaluator).
        density_neighbours: k of density and coverage (5 in the paper).
        device: where distances are computed.
    """

    def __init__(
        self,
        *,
        num_neighbours: Annotated[int, Range(1, 1000)] = 3,
        density_neighbours: Annotated[int, Range(1, 1000)] = 5,
        device: str = "cpu",
    ) -> None:
        self.num_neighbours, self.density_neighbours, self.device = num_neighbours, density_neighbours, device
        self._features: list[np.ndarray] = []
        self._references: list[np.ndarray] = []

    def update(self, features_ND: Tensor | np.ndarray, reference_MD: Tensor | np.ndarray | None = None) -> None:
        """Adds features (N, D), and reference features where given."""
        self._features.append(np.asarray(features_ND))
        if reference_MD is not None:
            self._references.append(np.asarray(reference_MD))

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen, after this one's."""
        self._features += other._features
        self._references += other._references

    def compute(self) -> dict[str, float]:
        """`precision`, `recall`, `density`, `coverage`."""
        if not self._features or not self._references:
            raise DataError("precision, recall: features of samples and of the reference are needed; one is missing")
        samples, reference = (p[0] if len(p) == 1 else np.concatenate(p) for p in (self._features, self._references))
        most = max(self.num_neighbours, self.density_neighbours)
        if min(len(samples), len(reference)) <= most:
            raise DataError(
                f"precision, recall: {len(samples)} samples and {len(reference)} reference images; "
                f"more than {most} of each are needed"
            )
        reference_radii = self._radii(reference, (self.num_neighbours, self.density_neighbours))
        sample_radii = self._radii(samples, (self.num_neighbours,))
        return self._compare(samples, reference, sample_radii[0], reference_radii[0], reference_radii[1])

    def _blocks(self, array: np.ndarray) -> list[tuple[int, int]]:
        return [(at, min(at + BLOCK, len(array))) for at in range(0, len(array), BLOCK)]

    def _rows(self, array: np.ndarray, bounds: tuple[int, int]) -> Tensor:
        return torch.from_numpy(np.array(array[slice(*bounds)])).to(self.device)

    def _radii(self, array: np.ndarray, neighbours: tuple[int, ...]) -> list[Tensor]:
        """For each k, the distance of every row to its k-th nearest other row."""
        distances = []
        most = max(neighbours) + 1  # the row itself is the nearest
        for rows in self._blocks(array):
            x = self._rows(array, rows)
            nearest = torch.full((len(x), 0), 0.0, device=self.device)
            for columns in self._blocks(array):
                near = torch.cdist(x, self._rows(array, columns))
                nearest = torch.cat([nearest, near], dim=1)
                nearest = nearest.topk(min(most, nearest.shape[1]), dim=1, largest=False, sorted=True).values
            distances.append(nearest.cpu())
        return [torch.cat([part[:, k] for part in distances]) for k in neighbours]

    def _compare(
        self, samples: np.ndarray, reference: np.ndarray, sample_radii: Tensor, radii: Tensor, density_radii: Tensor
    ) -> dict[str, float]:
        inside_N = torch.zeros(len(samples), dtype=torch.bool)
        balls_N = torch.zeros(len(samples), dtype=torch.int64)
        recalled_M = torch.zeros(len(reference), dtype=torch.bool)
        covered_M = torch.zeros(len(reference), dtype=torch.bool)
        for rows in self._blocks(samples):
            x, mine = self._rows(samples, rows), slice(*rows)
            for columns in self._blocks(reference):
                theirs = slice(*columns)
                distance = torch.cdist(x, self._rows(reference, columns)).cpu()
                inside_N[mine] |= (distance <= radii[theirs]).any(dim=1)
                recalled_M[theirs] |= (distance <= sample_radii[mine, None]).any(dim=0)
                in_ball = distance < density_radii[theirs]
                balls_N[mine] += in_ball.sum(dim=1)
                covered_M[theirs] |= in_ball.any(dim=0)
        return {
            "precision": float(inside_N.double().mean()),
            "recall": float(recalled_M.double().mean()),
            "density": float(balls_N.double().mean()) / self.density_neighbours,
            "coverage": float(covered_M.double().mean()),
        }
