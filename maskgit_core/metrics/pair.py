"""PSNR and SSIM of image pairs, per image, equal to scikit-image's, on any device.

Images are floats in [0, 1], BCHW; data range 1. SSIM is Wang et al. 2004 (eq. 13) with scikit-image's defaults: uniform
7 x 7 window, sample covariance (factor 49 / 48), K1 = 0.01, K2 = 0.03, a border of 3 pixels cut, mean over channels.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
    if a_BCHW.is_cuda:
        return _ssim_planes(a_BCHW, b_BCHW, data_range).mean(dim=1)
    # One channel at a time stays in a CPU's cache: half the time of a whole batch at once.
    planes = [
        _ssim_planes(a[None, None], b[None, None], data_range)[0]
        for a, b in zip(a_BCHW.flatten(0, 1), b_BCHW.flatten(0, 1), strict=True)
    ]
    return torch.cat(planes).view(a_BCHW.shape[:2]).mean(dim=1)


def _ssim_planes(a_BCHW: Tensor, b_BCHW: Tensor, data_range: float) -> Tensor:
    """Mean SSIM over the pixels of each channel: (B, C). Only the sum of the two variances is needed, not each."""
    squares = torch.addcmul(a_BCHW * a_BCHW, b_BCHW, b_BCHW)
    stacked = torch.stack([a_BCHW, b_BCHW, a_BCHW * b_BCHW, squares])
    mean_a, mean_b, mean_ab, mean_squares = _seven_taps(_seven_taps(stacked, -2), -1).div_(WINDOW * WINDOW)
    unbias = WINDOW * WINDOW / (WINDOW * WINDOW - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    product = mean_a * mean_b
    powers = torch.addcmul(mean_a * mean_a, mean_b, mean_b)
    covariance = mean_ab.sub_(product).mul_(unbias)
    variances = mean_squares.sub_(powers).mul_(unbias)
    above = (2 * product + c1).mul_(covariance.mul_(2).add_(c2))
    below = variances.add_(c2).mul_(powers.add_(c1))
    return above.div_(below).mean(dim=(2, 3))


def _seven_taps(x: Tensor, dim: int) -> Tensor:
    """Sums of every 7 neighbours along `dim` that lie inside: pairs, then fours, then four + two + one."""
    count = x.shape[dim] - WINDOW + 1
    twos = x.narrow(dim, 0, count + 5) + x.narrow(dim, 1, count + 5)
    fours = twos.narrow(dim, 0, count) + twos.narrow(dim, 2, count)
    return fours.add_(twos.narrow(dim, 4, count)).add_(x.narrow(dim, 6, count))
