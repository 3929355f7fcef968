"""Small data in the published layouts: ILSVRC, FFHQ, ADM's reference file, samples.

Real ImageNet pictures where `MASKGIT_TEST_DATA` names a folder with `imagenet250.tar`, else pictures made up.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01514668", "n01537544", "n01560419")


def pictures(count: int) -> list[bytes]:
    """JPEG files."""
    archive = Path(os.environ.get("MASKGIT_TEST_DATA", "")) / "imagenet250.tar"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.name.endswith(".JPEG")][:count]
            return [tar.extractfile(m).read() for m in members]  # type: ignore[union-attr]
    draws = np.random.default_rng(0)
    return [jpeg(draws.integers(0, 256, (48 + i % 5, 64, 3), dtype=np.uint8)) for i in range(count)]


def jpeg(pixels: np.ndarray) -> bytes:
    """One picture as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_ilsvrc(root: Path, train: int = 7, val: int = 3) -> Path:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, so many of each class."""
    data = iter(pictures(len(WNIDS) * (train + val)))
    for split, count in (("train", train), ("val", val)):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            for index in range(count):
                (root / split / wnid / f"{wnid}_{index}.JPEG").write_bytes(next(data))
    return root


def write_ffhq(root: Path, count: int = 20) -> Path:
    """`00000/00000.png` and on, as FFHQ is published."""
    for index, data in enumerate(pictures(count)):
        folder = root / f"{index // 10 * 10:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(data)) as picture:
            picture.convert("RGB").resize((64, 64)).save(folder / f"{index:05d}.png")
    return root


def write_cifar10(root: Path, train: int = 3, test: int = 2) -> Path:
    """`train/<class>/*.jpg` and `test/<class>/*.jpg`, so many of each of CIFAR-10's classes."""
    from maskgit_core.datasets.cifar10 import CLASS_NAMES

    draws = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in CLASS_NAMES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                (root / split / name / f"{index:04d}.jpg").write_bytes(jpeg(pixels))
    return root


def write_virtual(path: Path, count: int = 16, seed: int = 0) -> Path:
    """ADM's reference file: moments of Inception's features and spatial features, and images."""
    draws = np.random.default_rng(seed)
    arrays = {"arr_0": draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)}
    for dimension, mean, covariance in ((2048, "mu", "sigma"), (2023, "mu_s", "sigma_s")):
        arrays[mean] = draws.normal(size=dimension)
        arrays[covariance] = np.eye(dimension)
    np.savez(path, **arrays)
    return path


def write_samples(path: Path, count: int = 16) -> Path:
    """Samples as guided-diffusion writes them: `arr_0`, uint8 NHWC."""
    np.savez(path, arr_0=np.random.default_rng(1).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8))
    return path


def write_torch_statistics(path: Path) -> Path:
    """Halton-MaskGIT's reference file: `mu` and `cov` of Inception's features."""
    import torch

    torch.save({"mu": torch.zeros(2048), "cov": torch.eye(2048)}, path)
    return path
