"""Reading picture files: which extensions, decoding, and a quick look at headers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgit_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


def check_headers(folder: Path, names: Sequence[str], num_threads: int = 8) -> None:
    """Reads the header of every picture and fails once with all that cannot be read.

    Raises:
        DataError: the number of unreadable pictures and the first of their names.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        readable = list(pool.map(lambda name: has_readable_header(folder / name), names, chunksize=64))
    broken = [name for name, good in zip(names, readable, strict=True) if not good]
    if broken:
        shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        raise DataError(
            f"{folder}: {len(broken)} of {len(names)} pictures cannot be read: {shown}; remove or replace them"
        )


def undecodable(folder: Path, names: Sequence[str], num_threads: int = 8) -> list[str]:
    """The pictures that cannot be decoded to their last pixel, in order; decodes all of them."""

    def is_whole(name: str) -> bool:
        try:
            read_picture(folder / name)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(num_threads) as pool:
        whole = list(pool.map(is_whole, names))
    return [name for name, good in zip(names, whole, strict=True) if not good]


def read_picture(path: Path, channels: int = 3, upright: bool = False) -> np.ndarray:
    """Decodes a picture file to uint8 HWC, turned as its EXIF orientation says where `upright`.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return decode(ImageOps.exif_transpose(picture) if upright else picture, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: the picture is gone; put it back or run again without it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be decoded ({error}); remove or replace it") from error


def decode(picture: Any, channels: int) -> np.ndarray:
    """uint8 HWC of an open PIL picture of any mode, as RGB or grey.

    16-bit greys are scaled to [0, 255]; CMYK and palettes are converted as PIL does; what is transparent shows as PIL
    stores it below.
    """
    from maskgit_core.images.transforms import from_pil

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "TIFF")):
        picture = _eight_bits(picture)
    return from_pil(picture.convert("RGB" if channels == 3 else "L"))


def _eight_bits(picture: Any) -> Any:
    """A picture of 16-bit greys with 8 bits; PIL itself would cut off all that is above 255."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def has_readable_header(path: Path) -> bool:
    """True where PIL recognises the file and its size; decodes nothing."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return min(picture.size) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
