"""The contents of published reference statistics, told from names alone: no array is read and no code is run."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path

from maskgit_core.errors import ConfigError

#: Modules that a file of tensors names; anything else would be code of somebody's.
_OF_TENSORS = ("torch", "torch._utils", "torch.storage", "collections")


def check_statistics(key: str, path: Path, metrics: Sequence[str]) -> None:
    """Refuses a file that cannot serve as a reference for some metrics.

    Args:
        key: the config key that names the file.
        path: `.npz` with `mu`, `sigma` (and `mu_s`, `sigma_s`, `arr_0`), `.pt` with `mu`, `cov`, or images.
        metrics: names of metrics (`experiments/evaluation/set_scores.py`).

    Raises:
        ConfigError: names the key, what the file holds and what is needed.
    """
    if path.is_dir() or path.suffix == ".tar":
        return
    names = _tensor_names(key, path) if path.suffix == ".pt" else _array_names(key, path)
    wanted = ("mu", "cov") if path.suffix == ".pt" else ("mu", "sigma")
    if "arr_0" not in names and not {*wanted} <= {*names}:
        raise ConfigError(
            f"{key}: {path} holds [{', '.join(sorted(names)[:8])}]; statistics are {wanted[0]} and {wanted[1]}, "
            "pictures are arr_0; give such a file"
        )
    if "mu" in names and "spatial_frechet" in metrics and "mu_s" not in names:
        raise ConfigError(
            f"{key}: {path} holds no spatial statistics (mu_s, sigma_s), which spatial_frechet needs; give a file that "
            "has them, or set metrics without spatial_frechet"
        )
    by_features = [m for m in ("kernel_distance", "precision_recall", "density_coverage") if m in metrics]
    if by_features and "arr_0" not in names:
        raise ConfigError(
            f"{key}: {path} holds no pictures (arr_0), which {', '.join(by_features)} needs; give a file that has "
            f"them, or set metrics without {', '.join(by_features)}"
        )


def _array_names(key: str, path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{key}: {path} is no .npz file ({error}); give statistics as .npz or .pt, or pictures"
        ) from None


def _tensor_names(key: str, path: Path) -> list[str]:
    """The texts in a file of tensors, its keys among them."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            steps = list(pickletools.genops(archive.read(inner)))
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read as tensors ({error or 'no data.pkl in it'}); a .pt of the tensors mu and "
            "cov, saved with torch.save, is needed"
        ) from None
    for code, argument, _ in steps:
        named = str(argument).split(" ")[0] if code.name == "GLOBAL" else ""
        if code.name == "STACK_GLOBAL" or (named and named not in _OF_TENSORS):
            raise ConfigError(
                f"{key}: {path} holds more than tensors ({named or 'Python objects'}), which is not loaded; save mu "
                "and cov as tensors with torch.save"
            )
    return [str(argument) for _, argument, _ in steps if isinstance(argument, str)]
