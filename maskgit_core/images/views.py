"""The views of an image that a token cache keeps: the image itself, its mirror image, crops.

A view is a function of (seed, index of the sample), so any process makes the same ones.

Shapes: images uint8 (H, W, C); views uint8 (V, H, W, C); boxes int32 (V, 5): left, top, width, height in pixels of the
image as the dataset gives it, and 1 where mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.images.transforms import from_pil, index_generator, random_box, to_pil

Kind = Literal["original", "flip", "ten_crop", "random_resized_crop"]


@dataclass(frozen=True)
class Views:
    """Which views of each image are kept.

    Args:
        kind: `original` (1 view), `flip` (original, mirrored), `ten_crop` (corners and centre, and their mirror
            images), `random_resized_crop` (`num_crops` Inception crops, each mirrored with probability 1/2).
        crop_size: side of the crops; None for `original` and `flip`, which keep the image's size.
        num_crops: of `random_resized_crop`.
        scale: share of the area that a random crop covers, (low, high].
        ratio: width / height of a random crop before it is resized.
        seed: of the random crops.
    """

    kind: Kind = "flip"
    crop_size: int | None = None
    num_crops: int = 10
    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    seed: int = 0

    def __post_init__(self) -> None:
        cropping = self.kind in ("ten_crop", "random_resized_crop")
        if cropping and not self.crop_size:
            raise DataError(f"crop_size: {self.kind} needs the side of its crops, for instance crop_size=256")
        if not cropping and self.crop_size:
            raise DataError(f"crop_size: {self.kind} keeps the image's size; set dataset.image_size, or leave it null")

    @property
    def names(self) -> list[str]:
        """One name a view, in order."""
        if self.kind == "ten_crop":
            corners = ["top_left", "top_right", "bottom_left", "bottom_right", "center"]
            return corners + [f"{name}_flip" for name in corners]
        if self.kind == "random_resized_crop":
            return [f"crop_{number}" for number in range(self.num_crops)]
        return ["original"] if self.kind == "original" else ["original", "flip"]

    @property
    def has_boxes(self) -> bool:
        """Whether each view has a box worth keeping."""
        return self.kind in ("ten_crop", "random_resized_crop")

    def of(self, image: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The views of one image and their boxes.

        Raises:
            DataError: the image is smaller than the crops of `ten_crop`.
        """
        boxes = self._boxes(image, index)
        views = [self._cut(image, box) for box in boxes]
        return np.stack(views), np.array(boxes, dtype=np.int32)

    def one(self, image: np.ndarray, index: int, number: int) -> np.ndarray:
        """View `number` of `of`, uint8 (H, W, C), without the others."""
        return self._cut(image, self._boxes(image, index)[number])

    def _boxes(self, image: np.ndarray, index: int) -> list[tuple[int, ...]]:
        height, width = image.shape[:2]
        if self.kind == "ten_crop":
            return self._ten(height, width)
        if self.kind == "random_resized_crop":
            return self._random(height, width, index)
        return [(0, 0, width, height, flip) for flip in range(len(self.names))]

    def _cut(self, image: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
        left, top, width, height, flip = box
        view = image[top : top + height, left : left + width]
        if self.kind == "random_resized_crop" and (width, height) != (self.crop_size, self.crop_size):
            from PIL import Image

            side = int(self.crop_size or 0)
            view = from_pil(to_pil(np.ascontiguousarray(view)).resize((side, side), Image.Resampling.BICUBIC))
        return view[:, ::-1] if flip else view

    def _ten(self, height: int, width: int) -> list[tuple[int, ...]]:
        side = int(self.crop_size or 0)
        if min(height, width) < side:
            raise DataError(
                f"crop_size: {side} does not fit into images of {width} x {height}; raise dataset.image_size (a tenth "
                "above crop_size is usual) or lower crop_size"
            )
        right, bottom = width - side, height - side
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
        return [(left, top, side, side, flip) for flip in (0, 1) for left, top in corners]

    def _random(self, height: int, width: int, index: int) -> list[tuple[int, ...]]:
        """Inception crops, each mirrored or not."""
        draws = index_generator(self.seed, index)
        return [
            (*random_box(draws, height, width, self.scale, self.ratio), int(draws.random() < 0.5))
            for _ in range(self.num_crops)
        ]
