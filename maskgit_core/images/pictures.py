"""Reading picture files: which extensions, decoding, and a quick look at headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from maskgit_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

#: What PIL may take a file for, whatever its name: an EPS named .png must not reach Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
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


@contextmanager
def open_picture(source: Path | str | IO[bytes]) -> Iterator[Image.Image]:
    """An open PIL picture of one of the `FORMATS`; nothing else is tried, so no file reaches an interpreter.

    Raises:
        FileNotFoundError, OSError, ValueError: it cannot be opened or decoded, whatever PIL itself raises.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as picture:
            yield picture
    except (OSError, ValueError):
        raise
    except Exception as error:  # PIL raises anything over a broken file
        raise ValueError(f"{type(error).__name__}: {error}") from error


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
    from PIL import ImageOps

    try:
        with open_picture(path) as picture:
            return decode(ImageOps.exif_transpose(picture) if upright else picture, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: the picture is gone; put it back or run again without it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the picture cannot be decoded ({error}); remove or replace it") from error


def decode(picture: Image.Image, channels: int) -> np.ndarray:
    """uint8 HWC of an open PIL picture, as RGB or grey.

    16-bit grey is scaled by 255 / 65535 and rounded. Palettes become their colours, transparency is dropped, CMYK is
    converted without colour profiles, the first frame is taken; EXIF orientation is the caller's (`upright`).

    Raises:
        ValueError: floating-point pixels, whose range is not known, or integers beyond 16 bits.
    """
    from maskgit_core.images.transforms import from_pil

    if picture.mode == "F":
        raise ValueError("it holds floating-point pixels, whose range is not known; convert it to 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = _from_16_bits(picture)
    return from_pil(picture.convert("RGB" if channels == 3 else "L"))


def _from_16_bits(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(f"it holds integers from {values.min()} to {values.max()}; convert it to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def has_readable_header(path: Path) -> bool:
    """True where PIL recognises the file and its size; decodes nothing."""
    try:
        with open_picture(path) as picture:
            return min(picture.size) > 0
    except (OSError, ValueError):
        return False
