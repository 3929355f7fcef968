"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    d^2 = |m_1 - m_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2))

N samples, D features. Moments are streamed in float64; memory is 2 D^2 doubles whatever N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskgit_core.errors import DataError
from maskgit_core.hints import Derived

#: Doubt about the root's trace that the fast way may leave, as a share of both sets' total variance.
TOLERANCE = 1e-9
NUM_BLOCKS = 8  # of a triangular factor's columns
TILE = 256  # rows and columns that are transposed at once


class Moments(NamedTuple):
    """Mean (D,), sample covariance (D, D; divided by N - 1) and number of samples (0: unknown), in float64."""

    mean: Tensor
    covariance: Tensor
    num_samples: int


class Metric:
    """Streams features of one set; `moments` at any time, the distance to a reference in `compute`.

    The running mean and the centred second moment are updated a batch at a time (Chan, Golub, LeVeque 1983, eq. 2.1),
    which keeps full precision however far the mean is from zero. The same batches in the same order give the same bits.

    Args:
        reference: moments to compare with; None where only moments are wanted.
    """

    def __init__(self, *, reference: Derived[Moments | None] = None) -> None:
        self.reference = reference
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features_ND: Tensor) -> None:
        """Adds features (N, D) of any float type; they stay on their device."""
        batch = features_ND.detach().to(torch.float64)
        if batch.ndim != 2 or len(batch) == 0:
            raise DataError(f"features: shape {tuple(batch.shape)} was given; at least one row of (N, D) is needed")
        if not bool(torch.isfinite(batch).all()):
            raise DataError("features: a value is not finite; look at the images and the extractor's weights")
        mean = batch.mean(dim=0)
        centred = batch - mean
        self._add(len(batch), mean, centred.T @ centred)

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen."""
        if other.count:
            self._add(other.count, other._mean, other._scatter)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self._mean.shape:
            raise DataError(f"features: {len(mean)} values a row after {len(self._mean)}; use one extractor")
        total = self.count + count
        delta = mean.to(self._mean.device) - self._mean
        self._scatter += scatter.to(self._scatter.device)
        self._scatter.addr_(delta, delta, alpha=self.count * count / total)
        self._mean += delta * (count / total)
        self.count = total

    @property
    def moments(self) -> Moments:
        """Mean, covariance and count so far; two samples at least.

        Raises:
            DataError: fewer than two samples were seen.
        """
        if self.count < 2:
            raise DataError(f"features: a covariance needs at least 2 samples, {self.count} came; use more images")
        return Moments(self._mean.clone(), self._scatter / (self.count - 1), self.count)

    def compute(self) -> dict[str, float]:
        """`{"frechet": d^2}` to the reference given at the start."""
        if self.reference is None:
            raise DataError("frechet: there is no reference to compare with; give reference=Moments(...)")
        return {"frechet": frechet_distance(self.moments, self.reference)}


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians; exact, also where covariances are singular.

    tr((S_1 S_2)^(1/2)) is the sum of the square roots of the eigenvalues of the symmetric F' S_2 F with S_1 = F F': one
    Cholesky factor (or, where S_1 is singular, its eigenvectors of non-zero variance) and the eigenvalues of one
    symmetric matrix, no general matrix root. Where so many of these are so small that their roots are in doubt, and the
    determinant does not clear them, the sum is taken as the nuclear norm of F_1' F_2, whose error is of the order of
    rounding.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"frechet: moments of {len(a.mean)} and of {len(b.mean)} features were given; use one extractor for both"
        )
    device = a.mean.device
    mean_b, cov_a, cov_b = b.mean.to(device), _symmetric(a.covariance), _symmetric(b.covariance.to(device))
    between = (a.mean - mean_b).square().sum()
    root = _trace_root(cov_a, cov_b)
    distance = between + cov_a.diagonal().sum() + cov_b.diagonal().sum() - 2 * root
    return max(0.0, float(distance))


def _symmetric(matrix: Tensor) -> Tensor:
    """(M + M') / 2 in float64, a tile at a time: a transposed matrix is read slowly as a whole."""
    matrix = matrix.to(torch.float64)
    size, symmetric = len(matrix), torch.empty_like(matrix)
    for top in range(0, size, TILE):
        for left in range(0, top + 1, TILE):
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            tile = (matrix[rows, columns] + matrix[columns, rows].T).div_(2)
            symmetric[rows, columns] = tile
            symmetric[columns, rows] = tile.T
    return symmetric


def _trace_root(cov_a: Tensor, cov_b: Tensor) -> Tensor:
    """tr((A B)^(1/2)) of two symmetric positive semi-definite matrices."""
    factor = _factor(cov_a)
    if factor.shape[1] == 0:
        return cov_a.new_zeros(())
    limit = TOLERANCE * (cov_a.diagonal().sum() + cov_b.diagonal().sum())
    eigenvalues: Tensor = torch.linalg.eigvalsh(_congruent(factor, cov_b))
    # An eigenvalue is known to about `noise` at least; its root to noise / (2 root), or to the root of the noise.
    # (Where the eigenvalues are known, power laws at 512 and 2,048 features, the small ones err by at most 0.4 of an
    # epsilon of the largest, a tenth of this.)
    # Errors of eigenvalues well above the noise have random signs and add as squares; the others may all err one way.
    noise = 4 * torch.finfo(torch.float64).eps * eigenvalues[-1].clamp_min(0)
    errors = noise / (2 * eigenvalues.clamp_min(noise).sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    is_clear = eigenvalues > 100 * noise
    if errors[is_clear].square().sum().sqrt() + errors[~is_clear].sum() <= limit:
        return eigenvalues.clamp_min(0).sqrt().sum()
    factor_b = _factor(cov_b)
    if eigenvalues[0] > 0 and _error_by_determinant(eigenvalues, noise, factor, factor_b) <= limit:
        return eigenvalues.sqrt().sum()
    singular_values: Tensor = torch.linalg.svdvals(factor.T @ factor_b)
    return singular_values.sum()


def _error_by_determinant(eigenvalues: Tensor, noise: Tensor, factor_a: Tensor, factor_b: Tensor) -> Tensor:
    """Error of the sum of roots, estimated from the product of the eigenvalues, which Cholesky's pivots give exactly.

    The logarithm of the product is off by the sum of the eigenvalues' relative errors d. As their signs are random,
    that is of the size of |d|, and the sum of the roots is off by at most |d| |roots| / 2 (Cauchy-Schwarz) over those
    eigenvalues that noise may have touched; ten times that is returned. Covariances of ordinary features give factors
    whose columns fall in size, and then even eigenvalues far below the noise are right to several digits.
    """
    if not (_is_triangular(factor_a) and _is_triangular(factor_b)):
        return torch.full_like(noise, torch.inf)
    pivots = torch.stack([factor_a.diagonal(), factor_b.diagonal()])
    off = (eigenvalues.log().sum() - 2 * pivots.log().sum()).abs()
    return 5 * off * eigenvalues[eigenvalues < 1e6 * noise].sum().sqrt()


def _is_triangular(factor: Tensor) -> bool:
    """Whether `_factor` gave Cholesky's factor, not eigenvectors."""
    return factor.shape[0] == factor.shape[1] and not bool(factor[0, 1:].any())


def _congruent(factor: Tensor, matrix: Tensor) -> Tensor:
    """F' S F, its lower triangle only where F is square; with a lower triangular F the zeros are not multiplied."""
    if not _is_triangular(factor):
        return factor.T @ matrix @ factor
    size, product = len(factor), torch.zeros_like(matrix)
    step = max(1, size // NUM_BLOCKS)
    for left in range(0, size, step):
        right = min(left + step, size)
        columns = matrix[left:, left:] @ factor[left:, left:right]
        for top in range(left, size, step):
            bottom = min(top + step, size)
            product[top:bottom, left:right] = factor[top:, top:bottom].T @ columns[top - left :]
    return product


def _factor(covariance: Tensor) -> Tensor:
    """F (D, rank) with F F' = covariance: Cholesky's, of its leading part where it is singular, or eigenvectors."""
    lower: Tensor
    factor: Tensor
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed):
        return lower
    floor = len(covariance) * torch.finfo(torch.float64).eps
    lower, _ = torch.linalg.cholesky_ex(covariance[: int(failed) - 1, : int(failed) - 1])
    pivots = lower.diagonal().square()
    rank = int((pivots > floor * covariance.diagonal().max()).cumprod(0).sum())
    if rank:
        below = torch.linalg.solve_triangular(lower[:rank, :rank], covariance[:rank, rank:], upper=False).T
        factor = torch.cat([lower[:rank, :rank], below])
        total = covariance.diagonal().sum()
        if (
            total - factor.square().sum()
        ).abs() <= floor * total:  # all variance is there: the rank is that of the part
            return factor
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    kept = eigenvalues > floor * eigenvalues[-1].clamp_min(0)
    factor = vectors[:, kept] * eigenvalues[kept].sqrt()
    return factor
