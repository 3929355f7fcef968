"""uint8 pixels to the floats that networks see, and back, with the rounding named.

B batch, H, W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

#: `half_up`: x * 255 + 0.5 cut off (torchvision's save_image); `truncate`: x * 255 cut off, half a grey level darker.
Rounding = Literal["half_up", "truncate"]


def to_signed(images_BCHW: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1], as tokenizers take them."""
    return images_BCHW.float() / 127.5 - 1


def to_unit(signed_BCHW: Tensor) -> Tensor:
    """Floats in about [-1, 1] to [0, 1], clamped."""
    return ((signed_BCHW.float() + 1) / 2).clamp(0, 1)


def to_uint8(unit_BCHW: Tensor, rounding: Rounding = "half_up") -> Tensor:
    """Floats in [0, 1] to uint8 in [0, 255]."""
    offset = 0.5 if rounding == "half_up" else 0.0
    return (unit_BCHW * 255).add_(offset).clamp_(0, 255).to(torch.uint8)


class Images(Protocol):
    """Anything whose items have an `image` (uint8 HWC) and a `label`; every dataset has."""

    def __getitem__(self, index: int, /) -> Any: ...


def stack(dataset: Images, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) uint8 and labels (B,) int64 of a dataset's samples."""
    samples = [dataset[int(i)] for i in indices]
    pixels = torch.from_numpy(np.stack([s.image for s in samples]))
    return pixels.permute(0, 3, 1, 2).contiguous(), torch.tensor([s.label for s in samples])


def to_nhwc(images_BCHW: Tensor) -> np.ndarray:
    """uint8 BCHW tensor to a uint8 NHWC array."""
    array: np.ndarray = images_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def picture_grid(rows: Sequence[Sequence[Tensor]], scale: int = 1, gap: int = 2) -> np.ndarray:
    """One uint8 HWC picture of rows of uint8 CHW pictures of one size, on white, each pixel repeated `scale` times."""
    channels = max(image.shape[0] for row in rows for image in row)
    height, width = rows[0][0].shape[1] * scale, rows[0][0].shape[2] * scale
    columns = max(map(len, rows))
    shape = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            pixels = image.permute(1, 2, 0).cpu().numpy().repeat(scale, 0).repeat(scale, 1)
            top, left = gap + y * (height + gap), gap + x * (width + gap)
            canvas[top : top + height, left : left + width] = pixels
    return canvas
