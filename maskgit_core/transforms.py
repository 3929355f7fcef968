"""Crops and resizes of uint8 pictures with PIL, each under a name, because every number depends on them.

H, W height and width, C channels (1 or 3); pictures are uint8 HWC numpy arrays. Import-light: numpy and PIL inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Crop = Literal["adm", "center", "none"]


def resize(image: np.ndarray, size: int, filter_name: str = "bicubic") -> np.ndarray:
    """Resizes to `size` x `size` with PIL's `filter_name` (nearest, box, bilinear, hamming, bicubic, lanczos)."""
    return _resize(image, (size, size), filter_name)


def crop(image: np.ndarray, size: int, kind: Crop, filter_name: str = "bicubic") -> np.ndarray:
    """Square picture of side `size` (`none`: resized without a crop, losing the aspect ratio where not square)."""
    if kind == "adm":
        return adm_center_crop(image, size)
    if kind == "center":
        return center_crop(image, size, filter_name)
    return resize(image, size, filter_name) if image.shape[:2] != (size, size) else image


def adm_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """ADM's centre crop (Dhariwal and Nichol 2021, guided-diffusion's image_datasets): the crop behind published FIDs.

    The picture is halved with the box filter while its shorter side is at least twice `size`, then scaled with the
    bicubic filter until the shorter side is `size`, then cut in the middle (rounded down).
    """
    height, width = image.shape[:2]
    while min(height, width) >= 2 * size:
        width, height = width // 2, height // 2
        image = _resize(image, (width, height), "box")
    scale = size / min(height, width)
    width, height = round(width * scale), round(height * scale)
    image = _resize(image, (width, height), "bicubic")
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def center_crop(image: np.ndarray, size: int, filter_name: str = "bicubic") -> np.ndarray:
    """Shorter side to `size` (the longer rounded down), then the middle, offsets rounded as torchvision rounds them."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short != size:
        width, height = (size, size * height // width) if width == short else (size * width // height, size)
        image = _resize(image, (width, height), filter_name)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray,
    size: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter_name: str = "bicubic",
) -> np.ndarray:
    """A crop of random area (share of the picture in `scale`) and aspect (`ratio`), resized to `size` (Inception crop).

    Ten draws, then the largest centred crop within `ratio`. All randomness comes from `generator`.
    """
    import math

    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return _resize(image[top : top + h, left : left + w], (size, size), filter_name)
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], (size, size), filter_name)


def horizontal_flip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right."""
    return image[:, ::-1]


def to_pil(image: np.ndarray) -> Any:
    """A PIL picture of uint8 HWC pixels with 1 or 3 channels."""
    from PIL import Image

    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def from_pil(picture: Any) -> np.ndarray:
    """uint8 HWC pixels of a PIL picture in mode L (one channel) or RGB."""
    import numpy as np

    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resize(image: np.ndarray, width_height: tuple[int, int], filter_name: str) -> np.ndarray:
    from PIL import Image

    if (image.shape[1], image.shape[0]) == width_height:
        return image
    return from_pil(to_pil(image).resize(width_height, Image.Resampling[filter_name.upper()]))
