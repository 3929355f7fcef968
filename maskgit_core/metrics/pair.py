"""PSNR and SSIM of image pairs, per image, equal to scikit-image's, on any device; other packages' variants by name.

Images are floats in [0, 1], BCHW; data range 1. SSIM is Wang et al. 2004 (eq. 13) with scikit-image's defaults: uniform
7 x 7 window, sample covariance (factor 49 / 48), K1 = 0.01, K2 = 0.03, a border of 3 pixels cut, mean over channels.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from maskgit_core.errors import DataError

WINDOW = 7
PairName = Literal["psnr", "ssim", "psnr_pooled", "ssim_gaussian", "ssim_uniform", "ms_ssim", "ssim_range_2"]
#: What each name means: part of every protocol that uses it.
CONVENTIONS: dict[str, str] = {
    "psnr": "scikit-image's, per image, mean",
    "ssim": "scikit-image's: uniform 7 x 7, per image, mean",
    "psnr_pooled": "torchmetrics' default: of the mean squared error over all images (1 to 2 dB lower)",
    "ssim_gaussian": "torchmetrics' default: Gaussian 11 x 11 of 1.5 pixels, per image, mean",
    "ssim_uniform": "torchmetrics' uniform 7 x 7: population covariance, per image, mean",
    "ms_ssim": "torchmetrics' multi-scale SSIM, per image, mean; images of 176 pixels or more",
    "ssim_range_2": "scikit-image's with data_range 2 on [0, 1]: LlamaGen's tables, higher by 0.11 to 0.14",
}


class Metric:
    """Means over images of PSNR (dB), SSIM and their variants.

    Args:
        names: what is taken; `CONVENTIONS` says what each means.
        dtype: precision of the computation; float64 equals scikit-image to rounding.
    """

    def __init__(
        self, *, names: tuple[PairName, ...] = ("psnr", "ssim"), dtype: Literal["float32", "float64"] = "float64"
    ) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self.dtype = getattr(torch, dtype)
        self.count = 0
        self._sums = dict.fromkeys(self.names, 0.0)

    def update(self, originals_BCHW: Tensor, reconstructions_BCHW: Tensor) -> dict[str, Tensor]:
        """Adds pairs of float images in [0, 1]; returns what each image adds to each mean."""
        values = per_image(originals_BCHW, reconstructions_BCHW, self.dtype, self.names)
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
        """`{"psnr": dB, "ssim": in [-1, 1], ...}` over all images."""
        if self.count == 0:
            raise DataError("psnr, ssim: no image pair was given; nothing to average")
        return {name: of_mean(name, value / self.count) for name, value in self._sums.items()}


def per_image(
    originals_BCHW: Tensor,
    reconstructions_BCHW: Tensor,
    dtype: torch.dtype = torch.float64,
    names: Sequence[str] = ("psnr", "ssim"),
) -> dict[str, Tensor]:
    """What each pair adds to the mean of each named metric: float tensors (B,). `of_mean` makes the number of it."""
    if originals_BCHW.shape != reconstructions_BCHW.shape:
        raise DataError(
            f"image pair: shapes {tuple(originals_BCHW.shape)} and {tuple(reconstructions_BCHW.shape)} differ; "
            "reconstruct at the size of the originals"
        )
    if not originals_BCHW.is_floating_point():
        raise DataError(f"image pair: {originals_BCHW.dtype} was given; give floats in [0, 1] (uint8 / 255)")
    a, b = originals_BCHW.to(dtype), reconstructions_BCHW.to(dtype)
    return {name: _VARIANTS[name](a, b) for name in names}


def of_mean(name: str, mean: float) -> float:
    """The metric, from the mean over images of what `per_image` gave for it."""
    if name != "psnr_pooled":
        return mean
    return -10 * math.log10(mean) if mean > 0 else math.inf


def about(names: Sequence[str]) -> str:
    """What the named metrics mean, for a protocol."""
    plain = "per image on floats in [0, 1], not rounded; scikit-image's PSNR and SSIM (uniform 7 x 7), mean"
    more = [f"{name}: {CONVENTIONS[name]}" for name in names if name not in ("psnr", "ssim")]
    return "; ".join([plain, *more])


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


def _torchmetrics_ssim(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def values(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure as measure

        found: Any = measure(b_BCHW, a_BCHW, reduction="none", data_range=1.0, **options)
        return found.reshape(len(a_BCHW))  # type: ignore[no-any-return]

    return values


def _multi_scale(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    if min(a_BCHW.shape[-2:]) < 176:  # four halvings must leave the 11 pixels of the window
        raise DataError(f"ms_ssim: images of {tuple(a_BCHW.shape[-2:])} pixels; at least 176 x 176 are needed")
    found: Tensor = measure(b_BCHW, a_BCHW, reduction="none", data_range=1.0)
    return found.reshape(len(a_BCHW))


_VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "psnr_pooled": lambda a, b: (a - b).square().flatten(1).mean(dim=1),
    "ssim_gaussian": _torchmetrics_ssim(),
    "ssim_uniform": _torchmetrics_ssim(gaussian_kernel=False, kernel_size=7),
    "ms_ssim": _multi_scale,
    "ssim_range_2": lambda a, b: ssim(a, b, data_range=2.0),
}
