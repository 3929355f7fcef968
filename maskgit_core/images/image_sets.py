"""Sets of finished images, ours and other people's: guided-diffusion's `.npz`, folders of pictures, tars of pictures.

`open_images` gives uint8 NHWC pixels a slice at a time without reading a whole file into memory.
"""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy_format

from maskgit_core.errors import DataError, refused_as
from maskgit_core.images.pictures import EXTENSIONS, decode, open_picture, read_picture
from maskgit_core.images.tar_index import index_of, read_member
from maskgit_core.images.transforms import to_pil


class ImageSet(Protocol):
    """Images of one size: `len`, `read(indices) -> uint8 NHWC`, and labels (int64 N) where they are known."""

    labels: np.ndarray | None
    image_size: int

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices`: uint8 (n, H, W, C)."""


def open_images(path: Path) -> ImageSet:
    """The images in an `.npz` (`arr_0`, optionally `labels` or `arr_1`), in a tar or in a folder of pictures.

    Raises:
        DataError: nothing is there, or it holds no images of that form.
    """
    path = Path(path)
    if path.is_dir():
        return FolderImages(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder; give an .npz with arr_0 or a folder of pictures")
    return TarImages(path) if path.suffix == ".tar" else NpzImages(path)


def count_images(path: Path) -> int:
    """The number of images that `open_images` would find, without reading one.

    Raises:
        DataError: nothing is there, or it holds no images of that form.
    """
    path = Path(path)
    if path.suffix == ".npz" and path.is_file():
        with _npz_member(path, "arr_0") as (shape, *_):
            return int(shape[0]) if shape else 0
    return len(open_images(path))


def check_sizes(path: Path) -> None:
    """Reads the header of every picture in a folder.

    Raises:
        DataError: one cannot be read, or is not of the size of the first.
    """
    if not Path(path).is_dir():
        return
    first: tuple[int, int] | None = None
    for file in FolderImages(path).files:
        try:
            with open_picture(file) as picture:
                size = picture.size
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as a picture ({error}); remove or replace it") from None
        first = first or size
        if size != first:
            raise DataError(
                f"{file}: {size[0]} x {size[1]} pixels where others have {first[0]} x {first[1]}; samples must "
                "have one size"
            )


class NpzImages:
    """`arr_0` of an `.npz`, uint8 NHWC; mapped, not read, where the archive is not compressed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._images = npz_array(self.path, "arr_0")
        if self._images.ndim != 4 or self._images.dtype != np.uint8 or self._images.shape[-1] not in (1, 3):
            raise DataError(
                f"{path}: arr_0 is {self._images.dtype} {self._images.shape}; samples are uint8 (N, H, W, 1 or 3)"
            )
        self.image_size = int(self._images.shape[1])
        self.labels = self._find_labels()

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices`: uint8 (n, H, W, C)."""
        return np.ascontiguousarray(self._images[np.asarray(indices, dtype=np.int64)])

    def _find_labels(self) -> np.ndarray | None:
        there = npz_names(self.path)
        for name in ("labels", "arr_1"):
            if name in there:
                labels = npz_array(self.path, name)
                if labels.shape == (len(self),) and np.issubdtype(labels.dtype, np.integer):
                    return labels.astype(np.int64)
        return None


class FolderImages:
    """Pictures below a folder in the order of their sorted relative names; all of one size."""

    labels: np.ndarray | None = None

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        pictures = (p for p in self.path.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
        self._files = sorted(pictures, key=lambda p: p.relative_to(self.path).as_posix())
        if not self._files:
            raise DataError(f"{path}: no pictures here; give a folder of PNGs or an .npz with arr_0")
        self.image_size = int(read_picture(self._files[0]).shape[0])

    @property
    def files(self) -> list[Path]:
        """The pictures' files in order."""
        return list(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices`: uint8 (n, H, W, 3)."""
        images = [read_picture(self._files[int(i)]) for i in indices]
        return _stacked(images, [str(self._files[int(i)]) for i in indices])


class TarImages:
    """The pictures of a tar in the order of their sorted names, with the classes of `.cls` members beside them."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        members = sorted(index_of(self.path))
        self._pictures = [m for m in members if m.name.lower().endswith(EXTENSIONS)]
        if not self._pictures:
            raise DataError(f"{path}: no pictures in this tar; give one of PNGs, a folder, or an .npz with arr_0")
        classes = {m.name.removesuffix(".cls"): read_member(self.path, m) for m in members if m.name.endswith(".cls")}
        classes_read = [classes.get(m.name.rpartition(".")[0], b"") for m in self._pictures]
        self.labels = (
            np.array([int(f) for f in classes_read], dtype=np.int64) if all(f.isdigit() for f in classes_read) else None
        )
        self.image_size = int(self.read([0]).shape[1])

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices`: uint8 (n, H, W, 3)."""
        chosen = [self._pictures[int(i)] for i in indices]
        images = [decode_bytes(read_member(self.path, m), f"{self.path}: {m.name}") for m in chosen]
        return _stacked(images, [f"{self.path}: {m.name}" for m in chosen])


def sorted_by_class(labels: np.ndarray | None) -> bool:
    """True where the images of each class are contiguous: the official Inception score of such a file is wrong."""
    return labels is not None and len(set(labels.tolist())) > 1 and bool((np.diff(labels) >= 0).all())


def write_images(images: ImageSet, target: Path) -> None:
    """Writes a set as `.npz` (`arr_0`, `labels`), as `.tar` (PNG and `.cls` members) or as a folder of PNGs.

    Names are the index in six digits. An `.npz` takes the whole set into memory; the other forms stream.
    """
    target = Path(target)
    if target.suffix == ".npz":
        labels = {} if images.labels is None else {"labels": images.labels}
        with target.open("wb") as file:
            np.savez(file, allow_pickle=False, arr_0=images.read(range(len(images))), **labels)
        return
    if target.suffix == ".tar":
        with tarfile.open(target, "w") as tar:
            for index in range(len(images)):
                _add(tar, f"{index:06d}.png", encode_png(images.read([index])[0]))
                if images.labels is not None:
                    _add(tar, f"{index:06d}.cls", str(images.labels[index]).encode())
        return
    target.mkdir(parents=True, exist_ok=True)
    for index in range(len(images)):
        (target / f"{index:06d}.png").write_bytes(encode_png(images.read([index])[0]))


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 HWC picture as PNG."""
    to_pil(image).save(data := io.BytesIO(), format="PNG")
    return data.getvalue()


def decode_bytes(data: bytes, name: str) -> np.ndarray:
    """uint8 HWC RGB of an encoded picture; a failure names it."""
    told = f"{name}: the picture cannot be decoded ({{reason}}); remove or replace it"
    with refused_as(DataError, told), open_picture(io.BytesIO(data)) as picture:
        return decode(picture, 3)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _stacked(images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    for name, image in zip(names, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{name}: {image.shape[1]} x {image.shape[0]} pixels where others have "
                f"{images[0].shape[1]} x {images[0].shape[0]}; samples must have one size"
            )
    return np.stack(images)


_DAMAGED = "cannot be read ({reason}); the file is damaged, make or fetch it again"


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in an `.npz`."""
    told = f"{path}: not an .npz file ({{reason}}); give one with arr_0 or a folder of pictures"
    with refused_as(DataError, told), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def npz_array(path: Path, name: str) -> np.ndarray:
    """One array of an `.npz`, memory-mapped where it is stored without compression; object arrays are refused.

    Raises:
        DataError: no `.npz`, no such array, or one that could only be unpickled.
    """
    with refused_as(DataError, f"{path}: {name} {_DAMAGED}"):
        with _npz_member(path, name) as (shape, fortran, dtype, header, entry):
            if entry.compress_type != zipfile.ZIP_STORED or fortran or 0 in shape or shape == ():
                with np.load(path, allow_pickle=False) as arrays:
                    loaded: np.ndarray = arrays[name]
                    return loaded
        return np.memmap(path, dtype=dtype, mode="r", shape=shape, offset=_data_offset(path, entry) + header)


@contextlib.contextmanager
def _npz_member(path: Path, name: str) -> Iterator[tuple[tuple[int, ...], bool, Any, int, zipfile.ZipInfo]]:
    """Shape, order, type, length of the header and entry of an array in an `.npz`."""
    if name not in (there := npz_names(path)):
        raise DataError(f"{path}: has no array {name}; it has [{', '.join(there[:8])}]")
    with refused_as(DataError, f"{path}: {name} {_DAMAGED}"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as member:
            version = npy_format.read_magic(member)
            read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, fortran, dtype = read_header(member)
            header = member.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are not read; save plain numbers")
    yield shape, fortran, dtype, header, entry


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        local = file.read(30)
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    return int(entry.header_offset + 30 + name_length + extra_length)
