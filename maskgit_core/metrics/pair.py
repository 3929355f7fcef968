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
        names: of the metrics; `CONVENTIONS` explains each.
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
    """The term of each pair in the mean of each named metric: float tensors (B,); `of_mean` makes the number of it."""
    if originals_BCHW.shape != reconstructions_BCHW.shape:
        raise DataError(
            f"image pair: shapes {tuple(originals_BCHW.shape)} and {tuple(reconstructions_BCHW.shape)} differ; "
            "reconstruct at the size of the originals"
        )
    if not originals_BCHW.is_floating_point():
        raise DataError(f"image pair: {originals_BCHW.dtype} was given; give floats in [0, 1] (uint8 / 255)")
    if originals_BCHW.is_cuda:
        a, b = originals_BCHW.to(dtype), reconstructions_BCHW.to(dtype)
        return {name: _VARIANTS[name](a, b) for name in names}
    measured: dict[str, list[Tensor]] = {name: [] for name in names}
    for one, other in zip(originals_BCHW.split(1), reconstructions_BCHW.split(1), strict=True):  # stays in the cache
        a, b = one.to(dtype), other.to(dtype)
        for name in names:
            measured[name].append(_VARIANTS[name](a, b))
    return {name: torch.cat(values) for name, values in measured.items()}


def of_mean(name: str, mean: float) -> float:
    """The metric, from the mean over images of what `per_image` gave for it."""
    if name != "psnr_pooled":
        return mean
    return -10 * math.log10(mean) if mean > 0 else math.inf


def about(names: Sequence[str]) -> str:
    """The conventions of the named metrics, for a protocol."""
    plain = "per image on floats in [0, 1], not rounded; scikit-image's PSNR and SSIM (uniform 7 x 7), mean"
    more = [f"{name}: {CONVENTIONS[name]}" for name in names if name not in ("psnr", "ssim")]
    return "; ".join([plain, *more])


def psnr(a_BCHW: Tensor, b_BCHW: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B,); infinite for equal images."""
    error_B = (a_BCHW - b_BCHW).square_().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error_B)


@torch.no_grad()
def ssim(a_BCHW: Tensor, b_BCHW: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each image (B,), mean over pixels and channels."""
    batch, channels, height, width = a_BCHW.shape
    if min(height, width) < WINDOW:
        raise DataError(f"ssim: images of {(height, width)} pixels; at least {WINDOW} x {WINDOW} are needed")
    a_NHW, b_NHW = a_BCHW.reshape(-1, height, width), b_BCHW.reshape(-1, height, width)
    if a_BCHW.is_cuda:
        means_N = _ssim_planes(a_NHW, b_NHW, data_range, _Scratch(a_NHW))
    else:  # one channel at a time stays in a CPU's cache, in memory that is used again
        scratch = _Scratch(a_NHW[:1])
        pairs = zip(a_NHW.split(1), b_NHW.split(1), strict=True)
        means_N = torch.cat([_ssim_planes(a, b, data_range, scratch) for a, b in pairs])
    return means_N.view(batch, channels).mean(dim=1)


class _Scratch:
    """Memory for the window sums of N planes (H, W)."""

    def __init__(self, like_NHW: Tensor) -> None:
        planes, height, width = like_NHW.shape
        h, w = height - WINDOW + 1, width - WINDOW + 1
        self.products = like_NHW.new_empty(2, planes, height, width)
        self.twos_down = like_NHW.new_empty(4, planes, h + 5, width)
        self.down = like_NHW.new_empty(4, planes, h, width)
        self.twos_across = like_NHW.new_empty(4, planes, h, w + 5)
        self.sums = like_NHW.new_empty(4, planes, h, w)
        self.more = like_NHW.new_empty(2, planes, h, w)


def _ssim_planes(a_NHW: Tensor, b_NHW: Tensor, data_range: float, scratch: _Scratch) -> Tensor:
    """Mean SSIM over the pixels of each plane (N,).

    With A, B, X, Q the sums of a, b, ab and a^2 + b^2 over a window of n pixels and u = n / (n - 1), numerator and
    denominator are, times n^4, (2AB + n^2 C1) (2u(nX - AB) + n^2 C2) and (A^2 + B^2 + n^2 C1) (u(nQ - A^2 - B^2) +
    n^2 C2). Only the sum of the two variances is needed, not each.
    """
    products, down, sums = scratch.products, scratch.down, scratch.sums
    torch.mul(a_NHW, b_NHW, out=products[0])
    torch.mul(a_NHW, a_NHW, out=products[1]).addcmul_(b_NHW, b_NHW)
    for place, plane in enumerate((a_NHW, b_NHW)):
        _seven_taps(plane, -2, scratch.twos_down[place], down[place])
    _seven_taps(products, -2, scratch.twos_down[2:], down[2:])
    _seven_taps(down, -1, scratch.twos_across, sums)
    sum_a, sum_b, sum_ab, sum_squares = sums
    above, below = scratch.more
    torch.mul(sum_a, sum_b, out=above)
    torch.mul(sum_a, sum_a, out=below).addcmul_(sum_b, sum_b)
    n = WINDOW * WINDOW
    c1, c2 = (0.01 * data_range) ** 2 * n * n, (0.03 * data_range) ** 2 * (n - 1)
    sum_ab.sub_(above, alpha=1 / n).add_(c2 / 2)
    sum_squares.sub_(below, alpha=1 / n).add_(c2)
    above.add_(c1 / 2).mul_(sum_ab)
    ssim_BC: Tensor = above.div_(below.add_(c1).mul_(sum_squares)).mean(dim=(-2, -1)).mul_(4)
    return ssim_BC


def _seven_taps(x: Tensor, dim: int, twos: Tensor, out: Tensor) -> None:
    """Sums of every 7 neighbours along `dim` that lie inside: pairs, then fours, then four + two + one."""
    count = x.shape[dim] - WINDOW + 1
    torch.add(x.narrow(dim, 0, count + 5), x.narrow(dim, 1, count + 5), out=twos)
    torch.add(twos.narrow(dim, 0, count), twos.narrow(dim, 2, count), out=out)
    out.add_(twos.narrow(dim, 4, count)).add_(x.narrow(dim, 6, count))


def _torchmetrics_ssim(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def values(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure as measure

        similarity: Any = measure(b_BCHW, a_BCHW, reduction="none", data_range=1.0, **options)
        return similarity.reshape(len(a_BCHW))  # type: ignore[no-any-return]

    return values


def _multi_scale(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    if min(a_BCHW.shape[-2:]) < 176:  # four halvings must leave the 11 pixels of the window
        raise DataError(f"ms_ssim: images of {tuple(a_BCHW.shape[-2:])} pixels; at least 176 x 176 are needed")
    similarity: Tensor = measure(b_BCHW, a_BCHW, reduction="none", data_range=1.0)
    return similarity.reshape(len(a_BCHW))


_VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "psnr_pooled": lambda a, b: (a - b).square().flatten(1).mean(dim=1),
    "ssim_gaussian": _torchmetrics_ssim(),
    "ssim_uniform": _torchmetrics_ssim(gaussian_kernel=False, kernel_size=7),
    "ms_ssim": _multi_scale,
    "ssim_range_2": lambda a, b: ssim(a, b, data_range=2.0),
}
