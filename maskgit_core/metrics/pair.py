"""PSNR and SSIM of image pairs, per image, equal to scikit-image's, on any device.

Images are floats in [0, 1], BCHW; data range 1. SSIM is Wang et al. 2004 (eq. 13) with scikit-image's defaults: uniform
7 x 7 window, sample covariance (factor 49 / 48), K1 = 0.01, K2 = 0.03, a border of 3 pixels cut, mean over channels.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from maskgit_core.errors import DataError

WINDOW = 7


class Metric:
    """Mean PSNR (dB) and SSIM over images.

    Args:
        dtype: precision of the computation; float64 equals scikit-image to rounding.
    """

    def __init__(self, *, dtype: Literal["float32", "float64"] = "float64") -> None:
        self.dtype = getattr(torch, dtype)
        self.count = 0
        self._sums = {"psnr": 0.0, "ssim": 0.0}

    def update(self, originals_BCHW: Tensor, reconstructions_BCHW: Tensor) -> dict[str, Tensor]:
        """Adds pairs of float images in [0, 1]; returns the values of each image."""
        values = per_image(originals_BCHW, reconstructions_BCHW, self.dtype)
        self.count += len(originals_BCHW)
        for name, value_B in values.items():
            self._sums[name] += float(value_B.double().sum())
        return values

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen."""
        self.count += other.count
        for name, value in other._sums.items():
            self._sums[name] += value

    def compute(self) -> dict[str, float]:
        """`{"psnr": dB, "ssim": in [-1, 1]}`, means over images."""
        if self.count == 0:
            raise DataError("psnr, ssim: no image pair was given; nothing to average")
        return {name: value / self.count for name, value in self._sums.items()}


def per_image(
    originals_BCHW: Tensor, reconstructions_BCHW: Tensor, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """PSNR and SSIM of each pair: float tensors (B,)."""
    if originals_BCHW.shape != reconstructions_BCHW.shape:
        raise DataError(
            f"image pair: shapes {tuple(originals_BCHW.shape)} and {tuple(reconstructions_BCHW.shape)} differ; "
            "reconstruct at the size of the originals"
        )
    if not originals_BCHW.is_floating_point():
        raise DataError(f"image pair: {originals_BCHW.dtype} was given; give floats in [0, 1] (uint8 / 255)")
    a, b = originals_BCHW.to(dtype), reconstructions_BCHW.to(dtype)
    return {"psnr": psnr(a, b), "ssim": ssim(a, b)}


def psnr(a_BCHW: Tensor, b_BCHW: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B,); infinite for equal images."""
    error_B = (a_BCHW - b_BCHW).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error_B)


def ssim(a_BCHW: Tensor, b_BCHW: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each image (B,), mean over pixels and channels."""
    if min(a_BCHW.shape[-2:]) < WINDOW:
        raise DataError(f"ssim: images of {tuple(a_BCHW.shape[-2:])} pixels; at least {WINDOW} x {WINDOW} are needed")
    count = WINDOW * WINDOW
    unbias = count / (count - 1)
    mean_a, mean_b = _window_mean(a_BCHW), _window_mean(b_BCHW)
    var_a = unbias * (_window_mean(a_BCHW * a_BCHW) - mean_a * mean_a)
    var_b = unbias * (_window_mean(b_BCHW * b_BCHW) - mean_b * mean_b)
    cov = unbias * (_window_mean(a_BCHW * b_BCHW) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _window_mean(x_BCHW: Tensor) -> Tensor:
    """Mean over every 7 x 7 window that lies inside the image; separable, so 14 instead of 49 reads a pixel."""
    rows = functional.avg_pool2d(x_BCHW, (WINDOW, 1), stride=1)
    return functional.avg_pool2d(rows, (1, WINDOW), stride=1)
