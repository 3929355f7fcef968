"""Datasets: one file each, class `Dataset`, a sequence of `Sample(key, image, label)`.

Contract: `__len__`, `__getitem__(i) -> Sample`, `num_classes: int | None`, `class_names: list[str]`, `image_size: int`
(side after the crop) and `channels: int`. What an index gives never changes: no randomness, no state.
These modules import neither torch nor, at the top, numpy or PIL, because a plan may import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np


class Sample(NamedTuple):
    """One picture: a key unique in its dataset, uint8 HWC pixels (C is 1 or 3) and a class (-1: none).

    `box` is left, top, width, height in the stored picture where it was cut at random.
    """

    key: str
    image: np.ndarray
    label: int
    box: tuple[int, int, int, int] | None = None


class ImageSequence(Protocol):
    """The interface of a dataset for stages."""

    num_classes: int | None
    class_names: list[str]
    image_size: int
    channels: int

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at `index` in [0, len)."""

    def check(self) -> None:
        """Fails with one `DataError`, before work begins, where images cannot be read."""
