"""Pixels to a network's input size, as three families of FID code do it; the differences move FID by tenths.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Resize = Literal["tf1", "torch", "clean", "clean_uint8"]


def resize_for_network(images_BCHW: Tensor, side: int, how: Resize, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images to floats in [0, 255] of `side` x `side`.

    `tf1`: TensorFlow 1's bilinear resize without half-pixel centres and without antialias (ADM, torch-fidelity).
    `torch`: bilinear with half-pixel centres, no antialias (pytorch-fid).
    `clean`: PIL's bicubic with antialias, each channel as 32-bit floats, then clipped to [0, 255] (Parmar et al. 2022,
    arXiv:2104.11222; clean-fid). `clean_uint8`: that with the fractions cut off (Halton-MaskGIT). The others do not
    round.
    """
    if how == "clean":
        return _clean(images_BCHW, side).to(dtype)
    if how == "clean_uint8":
        return _clean(images_BCHW, side).floor().to(dtype)
    x_BCHW = images_BCHW.to(dtype)
    if how == "torch":
        return functional.interpolate(x_BCHW, size=(side, side), mode="bilinear", align_corners=False)
    return _tensorflow_bilinear(x_BCHW, side)


def _tensorflow_bilinear(x_BCHW: Tensor, side: int) -> Tensor:
    """Output pixel i is at i * (input / output); neighbours floor and floor + 1, the last one held."""
    height, width = x_BCHW.shape[-2:]
    if (height, width) == (side, side):
        return x_BCHW
    top, bottom, down = _neighbours(height, side, x_BCHW)
    left, right, across = _neighbours(width, side, x_BCHW)
    upper, lower = x_BCHW[:, :, top], x_BCHW[:, :, bottom]
    upper = upper[..., left] + (upper[..., right] - upper[..., left]) * across
    lower = lower[..., left] + (lower[..., right] - lower[..., left]) * across
    return upper + (lower - upper) * down[:, None]


def _neighbours(size: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every output pixel the two input pixels around it, and how far it is towards the second."""
    scale = torch.tensor(size, device=like.device).float() / side  # rounded to float32 in every precision
    place = torch.arange(side, dtype=like.dtype, device=like.device) * scale
    first = place.floor()
    second = (first + 1).clamp_max(size - 1)
    return first.long(), second.long(), place - first


def _clean(images_BCHW: Tensor, side: int) -> Tensor:
    import numpy as np
    from PIL import Image

    planes = images_BCHW.cpu().numpy().astype(np.float32)
    resized = [
        [np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)) for plane in image]
        for image in planes
    ]
    return torch.from_numpy(np.array(resized).clip(0, 255)).to(images_BCHW.device)
