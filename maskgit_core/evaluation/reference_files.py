"""Published statistics of reference sets: `.npz` of guided-diffusion (ADM) and others, `.pt` of Halton-MaskGIT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maskgit_core.errors import DataError, refused_as
from maskgit_core.images.image_sets import npz_array, npz_names
from maskgit_core.metrics.frechet import Moments


def holds_statistics(path: Path) -> bool:
    """Whether a file holds mean and covariance of features (and not images alone)."""
    return path.suffix == ".pt" or "mu" in npz_names(path)


def read_statistics(path: Path, feature_dim: int) -> tuple[Moments, Moments | None]:
    """Mean and covariance of the features, and of the spatial features where the file has them.

    Args:
        path: `.npz` with `mu` (D,), `sigma` (D, D) and optionally `mu_s`, `sigma_s`; or `.pt` with tensors `mu`, `cov`.
        feature_dim: D of the extractor in use.

    Raises:
        DataError: not such a file, another D, or values that are no covariance.
    """
    names = [] if path.suffix == ".pt" else npz_names(path)
    moments = _from_tensors(path) if path.suffix == ".pt" else _pair(path, "mu", "sigma")
    if len(moments.mean) != feature_dim:
        raise DataError(
            f"{path}: mu has {len(moments.mean)} values, the extractor gives {feature_dim}; "
            "use the extractor that the statistics were made with"
        )
    spatial = _pair(path, "mu_s", "sigma_s") if "mu_s" in names and "sigma_s" in names else None
    return moments, spatial


def _from_tensors(path: Path) -> Moments:
    """`mu` and `cov` of a file that holds nothing but tensors; no code in it is run."""
    told = f"{path}: cannot be read as statistics ({{reason}}); a .pt of the tensors mu and cov is needed"
    with refused_as(DataError, told):
        moments = torch.load(path, map_location="cpu", weights_only=True)
        mean, covariance = moments["mu"].numpy(), moments["cov"].numpy()
    return _checked(path, mean, covariance, "mu", "cov")


def _pair(path: Path, mean_name: str, covariance_name: str) -> Moments:
    return _checked(path, npz_array(path, mean_name), npz_array(path, covariance_name), mean_name, covariance_name)


def _checked(path: Path, mean: np.ndarray, covariance: np.ndarray, mean_name: str, covariance_name: str) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"{path}: {mean_name} is {mean.shape}, {covariance_name} {covariance.shape}; (D,) and (D, D) are needed"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: {mean_name} or {covariance_name} is not finite; fetch the file again")
    return Moments(
        torch.from_numpy(np.array(mean, dtype=np.float64)), torch.from_numpy(np.array(covariance, dtype=np.float64)), 0
    )


def write_statistics(path: Path, moments: Moments, spatial: Moments | None = None) -> None:
    """Writes `mu`, `sigma` (and `mu_s`, `sigma_s`) as other evaluators read them."""
    arrays = {"mu": moments.mean.cpu().numpy(), "sigma": moments.covariance.cpu().numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.cpu().numpy(), "sigma_s": spatial.covariance.cpu().numpy()}
    with Path(path).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
