"""Generated samples on disk: pieces by index range, and one `.npz` of all of them, written in a stream.

The `.npz` of images is the form that evaluators exchange (`arr_0`: uint8 NHWC, `labels`: int64), so 50,000 samples are
one file and are never in memory together.

Shapes: N samples, L tokens, H × W image, C channels.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskgit_core.errors import DataError, refused_as


def piece_name(first: int, end: int) -> str:
    """The file name of the samples with indices first ... end - 1."""
    return f"samples-{first:08d}-{end:08d}.npz"


def piece_ranges(num_samples: int, piece_size: int) -> list[tuple[int, int]]:
    """The index ranges [first, end) that samples are made and published in."""
    return [(first, min(first + piece_size, num_samples)) for first in range(0, num_samples, piece_size)]


def read_piece(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a piece.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(path, None)


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of a piece; the others are not read from disk.

    Raises:
        DataError: the file is missing or damaged, or has no such array.
    """
    return _read(path, name)[name]


def _read(path: Path, only: str | None) -> dict[str, np.ndarray]:
    told = f"{path}: cannot be read as samples ({{reason}}); delete it and run the step again"
    with refused_as(DataError, told), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ([only] if only else arrays.files)}


def write_piece(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an uncompressed `.npz`; the same arrays always give the same bytes."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_joined(path: Path, pieces: Sequence[Path], names: Mapping[str, str]) -> None:
    """Joins pieces along the first axis into one `.npz`, one piece in memory at a time.

    Args:
        names: array in the result -> array in the pieces.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for target, source in names.items():
            parts = _parts(pieces, source)
            first = next(parts)
            total = sum(_count(piece, source) for piece in pieces)
            with archive.open(zipfile.ZipInfo(f"{target}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(
                    file,
                    {"descr": first.dtype.str, "fortran_order": False, "shape": (total, *first.shape[1:])},
                )
                file.write(np.ascontiguousarray(first).tobytes())
                for part in parts:
                    file.write(np.ascontiguousarray(part).tobytes())


def _parts(pieces: Sequence[Path], name: str) -> Iterator[np.ndarray]:
    for piece in pieces:
        yield read_array(piece, name)


def _count(piece: Path, name: str) -> int:
    _, first, end = piece.stem.split("-")
    return int(end) - int(first)
