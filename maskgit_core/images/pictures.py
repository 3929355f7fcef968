"""Reading picture files: which extensions, decoding, and a quick look at headers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

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


def read_picture(path: Path, channels: int = 3) -> np.ndarray:
    """Decodes a picture file to uint8 HWC; every failure is a `DataError` that names the file."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return decode(picture, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: the picture is gone; put it back or run again without it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the picture cannot be decoded ({error}); remove or replace it") from error


def decode(picture: object, channels: int) -> np.ndarray:
    """uint8 HWC of an open PIL picture, as RGB or grey."""
    from maskgit_core.images.transforms import from_pil

    return from_pil(picture.convert("RGB" if channels == 3 else "L"))  # type: ignore[attr-defined]


def has_readable_header(path: Path) -> bool:
    """True where PIL recognises the file and its size; decodes nothing."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return min(picture.size) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
