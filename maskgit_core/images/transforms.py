"""Crops and resizes of uint8 pictures with PIL, each under a name, because every number depends on them.

H, W height and width, C channels (1 or 3); pictures are uint8 HWC numpy arrays. Import-light: numpy and PIL inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from maskgit_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Crop = Literal["adm", "adm_fast", "center", "none", "random_resized", "adm_random"]
#: Crops that are drawn for each picture and tell their box.
RANDOM_CROPS = ("random_resized", "adm_random")
#: Left, top, width, height in pixels.
Box = tuple[int, int, int, int]


def resize(image: np.ndarray, size: int, filter_name: str = "bicubic") -> np.ndarray:
    """Resizes to `size` x `size` with PIL's `filter_name` (nearest, box, bilinear, hamming, bicubic, lanczos)."""
    return _resize(image, (size, size), filter_name)


def crop(image: np.ndarray, size: int, kind: Crop, filter_name: str = "bicubic") -> np.ndarray:
    """Square picture of side `size` (`none`: resized without a crop, losing the aspect ratio where not square)."""
    if kind in ("adm", "adm_fast"):
        return adm_center_crop(image, size, is_fast=kind == "adm_fast")
    if kind == "center":
        return center_crop(image, size, filter_name)
    return resize(image, size, filter_name) if image.shape[:2] != (size, size) else image


def adm_center_crop(image: np.ndarray, size: int, is_fast: bool = False) -> np.ndarray:
    """ADM's centre crop (Dhariwal and Nichol 2021, guided-diffusion's image_datasets): the crop behind published FIDs.

    The picture is halved with the box filter while its shorter side is at least twice `size`, then scaled with the
    bicubic filter until the shorter side is `size`, then cut in the middle (rounded down).

    Args:
        is_fast: the bicubic filter is PyTorch's instead of PIL's, which rounds some values to a neighbouring level:
            another transform with a name of its own (`adm_fast`), not for published protocols.
    """
    image = _adm_shorter_side(image, size, is_fast)
    height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _adm_shorter_side(image: np.ndarray, side: int, is_fast: bool = False) -> np.ndarray:
    """The picture with its shorter side at `side`: halvings with the box filter, then the bicubic filter."""
    height, width = image.shape[:2]
    while min(height, width) >= 2 * side:
        width, height = width // 2, height // 2
        image = _resize(image, (width, height), "box")
    scale = side / min(height, width)
    width, height = round(width * scale), round(height * scale)
    return _fast_bicubic(image, width, height) if is_fast else _resize(image, (width, height), "bicubic")


def adm_random_crop(
    image: np.ndarray, size: int, generator: np.random.Generator, scale: tuple[float, float] = (0.8, 1.0)
) -> tuple[np.ndarray, Box]:
    """ADM's random crop (guided-diffusion's image_datasets; LlamaGen and the PyTorch MaskGIT have it too), and its box.

    The picture is scaled as for ADM's centre crop, but to a shorter side drawn from ceil(size / scale[1]) to
    ceil(size / scale[0]); then a square of side `size` is cut at a random place.

    Args:
        scale: share of the shorter side that the crop covers, (low, high].
    """
    import math

    least, most = math.ceil(size / scale[1]), math.ceil(size / scale[0])
    whole_height, whole_width = image.shape[:2]
    image = _adm_shorter_side(image, _drawn(generator, least, most + 1))
    height, width = image.shape[:2]
    top, left = _drawn(generator, 0, height - size + 1), _drawn(generator, 0, width - size + 1)
    down, across = whole_height / height, whole_width / width
    box = (round(left * across), round(top * down), round(size * across), round(size * down))
    return image[top : top + size, left : left + size], box


def _drawn(generator: np.random.Generator, low: int, high: int) -> int:
    """A whole number in [low, high)."""
    return low + int(generator.random() * (high - low))


def center_crop(image: np.ndarray, size: int, filter_name: str = "bicubic") -> np.ndarray:
    """Shorter side to `size` (the longer rounded down), then the middle, offsets rounded as torchvision rounds them."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short != size:
        width, height = (size, size * height // width) if width == short else (size * width // height, size)
        image = _resize(image, (width, height), filter_name)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return image[top : top + size, left : left + size]


@dataclass(frozen=True)
class IndexCrop:
    """A crop by name; `random_resized` and `adm_random` are functions of (seed, index) and tell their box.

    Args:
        kind: see `Crop`.
        size: side of the result.
        filter_name: PIL filter of all kinds but ADM's.
        seed: of the draws. scale: the share of the area that `random_resized` covers, of the shorter side that
            `adm_random` does.
    """

    kind: Crop
    size: int
    filter_name: str = "bicubic"
    seed: int = 0
    scale: tuple[float, float] = (0.8, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"crop_scale: found {list(self.scale)}; give two shares of the area, 0 < low <= high <= 1")

    def __call__(self, image: np.ndarray, index: int) -> tuple[np.ndarray, Box | None]:
        """The square picture, and the box (left, top, width, height) of a random crop."""
        if self.kind not in RANDOM_CROPS:
            return crop(image, self.size, self.kind, self.filter_name), None
        if self.kind == "adm_random":
            return adm_random_crop(image, self.size, index_generator(self.seed, index), self.scale)
        box = random_box(index_generator(self.seed, index), image.shape[0], image.shape[1], self.scale)
        return cut(image, box, self.size, self.filter_name), box


def index_generator(seed: int, index: int) -> np.random.Generator:
    """Random numbers that belong to one sample: a function of (seed, index) alone."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index]))


def random_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Left, top, width, height of an Inception crop (Szegedy et al. 2015): random area (share in `scale`) and aspect.

    Ten draws, then the largest centred crop within `ratio`.
    """
    import math

    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * generator.random())
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * generator.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.random() * (width - w + 1)), int(generator.random() * (height - h + 1)), w, h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def cut(image: np.ndarray, box: Box, size: int, filter_name: str = "bicubic") -> np.ndarray:
    """The box (left, top, width, height) of a picture, resized to `size` x `size`."""
    left, top, width, height = box
    return _resize(image[top : top + height, left : left + width], (size, size), filter_name)


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


def _fast_bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """PyTorch's bicubic filter on 8-bit values, with antialiasing as PIL has it."""
    import numpy as np
    import torch

    if image.shape[:2] == (height, width):
        return image
    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels_1CHW, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
