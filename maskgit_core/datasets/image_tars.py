"""Pictures inside tar files, without unpacking: WebDataset shards, and ImageNet's ILSVRC2012_img_train.tar (a tar of tars).

The members' places are found once by reading all tar headers and kept in a small file under the user's cache folder, so
any picture is one read away.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample
from maskgit_core.datasets.image_folder import EXTENSIONS, decode
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Range

if TYPE_CHECKING:
    import numpy as np

_VERSION = 1


class Dataset:
    """Pictures in tar files, in the order of the files' names and of the members in them.

    In WebDataset form a sample is `KEY.jpg` (or another picture) and `KEY.cls` with its class as text. Tars inside the
    tar are classes, in the order of their sorted names; so ILSVRC2012's training archive is read as it was published.

    Args:
        root: a tar file or a folder of tar files, or a list of which the first that exists counts.
        image_size: side after crop and resize.
        crop: `adm`, `center` or `none`; see `maskgit_core/transforms.py`.
        filter_name: PIL filter of `center` and `none`.
        channels: 3 (RGB) or 1 (grey).

    Raises:
        DataError: no tar files, no pictures in them, or a damaged one; names the file.
    """

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        image_size: Annotated[int, Range(8, 4096)] = 256,
        crop: Literal["adm", "center", "none"] = "adm",
        filter_name: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic",
        channels: Literal[1, 3] = 3,
    ) -> None:
        place = resolve(root)
        self.image_size, self.crop, self.filter_name, self.channels = image_size, crop, filter_name, channels
        self.files = [place] if place.is_file() else sorted(place.glob("*.tar"))
        if not self.files:
            raise DataError(f"{place}: no .tar files here; set root to a tar file or to a folder of them")
        self._index, self.class_names = _index(self.files)
        if not len(self._index["offset"]):
            raise DataError(f"{place}: the tar files hold no pictures (looked for {' '.join(EXTENSIONS)})")
        top = int(self._index["label"].max())
        self.num_classes: int | None = len(self.class_names) or (top + 1 if top >= 0 else None)
        if not self.class_names and self.num_classes:
            self.class_names = [str(label) for label in range(self.num_classes)]
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._index["offset"])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        from PIL import Image

        from maskgit_core.transforms import crop

        name = self._index["key"][index].decode()
        file, offset, size = (int(self._index[field][index]) for field in ("file", "offset", "size"))
        try:
            data = os.pread(self._descriptor(file), size, offset)
            with Image.open(io.BytesIO(data)) as picture:
                image = decode(picture, self.channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.files[file]}: {name} cannot be decoded ({error}); replace it") from error
        label = int(self._index["label"][index])
        return Sample(name, crop(image, self.image_size, self.crop, self.filter_name), label)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @property
    def labels(self) -> np.ndarray:
        """All labels: int64 N; -1 where there is none."""
        labels: np.ndarray = self._index["label"]
        return labels

    def check(self) -> None:
        """Nothing more to check: all headers were read when the tar files were indexed."""

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            self._open[file] = os.open(self.files[file], os.O_RDONLY)
        return self._open[file]


def _index(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Places of all pictures (arrays file, offset, size, label, key) and the class names, from the cache if it is there."""
    import numpy as np

    stats = [path.stat() for path in files]
    state = json.dumps(
        [_VERSION, [[str(p.absolute()), s.st_size, s.st_mtime_ns] for p, s in zip(files, stats, strict=True)]]
    )
    home = Path(os.environ.get("MASKGIT_HOME", "~/.cache/maskgit")).expanduser()
    cached = home / "tar_indexes" / f"{hashlib.sha256(state.encode()).hexdigest()[:24]}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError):
        with np.load(cached, allow_pickle=False) as data:
            found = {name: data[name] for name in ("file", "offset", "size", "label", "key")}
            return found, [name.decode() for name in data["class_names"].tolist()]
    with ThreadPoolExecutor(8) as pool:
        scanned = list(pool.map(_scan, files))
    classes = sorted({row[3] for rows in scanned for row in rows if isinstance(row[3], str)})
    number = {name: label for label, name in enumerate(classes)}
    rows = [(i, offset, size, number.get(label, label) if isinstance(label, str) else label, key.encode())
            for i, part in enumerate(scanned) for key, offset, size, label in part]  # fmt: skip
    columns = list(zip(*rows, strict=True)) or [()] * 5
    found = {name: np.array(columns[i], dtype=np.int64) for i, name in enumerate(("file", "offset", "size", "label"))}
    found["key"] = np.array(columns[4], dtype=np.bytes_)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".{uuid.uuid4().hex[:8]}.npz")
        np.savez(temporary, **found, class_names=np.array([name.encode() for name in classes], dtype=np.bytes_))
        os.replace(temporary, cached)
    return found, classes


def _scan(path: Path) -> list[tuple[str, int, int, int | str]]:
    """(key, offset, size, class) of every picture of a tar file; the class of an inner tar's pictures is its name."""
    try:
        with open(path, "rb") as file:
            return _members(file, 0, path.stat().st_size, "", path)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: not a whole tar file ({error}); get it again") from error


def _members(file: Any, start: int, size: int, inner: str, path: Path) -> list[tuple[str, int, int, int | str]]:
    """Pictures of the archive that begins at byte `start` of `file`."""
    found: list[tuple[str, int, int, int | str]] = []
    classes: dict[str, int] = {}
    with tarfile.open(fileobj=_Window(file, start, size), mode="r:") as archive:  # type: ignore[call-overload]
        for member in archive:
            name, place = member.name, start + member.offset_data
            if not member.isfile() or os.path.basename(name).startswith("."):
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within {name}")
            stem = name.rpartition("/")[0] + "/" * ("/" in name) + os.path.basename(name).split(".", 1)[0]
            if name.lower().endswith(".tar"):
                found += _members(file, place, member.size, os.path.basename(name)[:-4], path)
            elif name.lower().endswith(".cls"):
                file.seek(place)
                text = file.read(member.size).decode(errors="replace").strip()
                if not text.lstrip("-").isdigit():
                    raise tarfile.ReadError(f"{name} holds {text[:20]!r}, not a class number")
                classes[stem] = int(text)
            elif name.lower().endswith(EXTENSIONS):
                key = f"{inner}/{name}" if inner else name
                found.append((key, place, member.size, inner or f"\0{stem}"))
    return [
        (key, place, length, classes.get(label[1:], -1) if isinstance(label, str) and label.startswith("\0") else label)
        for key, place, length, label in found
    ]


class _Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from here, at most to the window's end."""
        left = max(self._size - self._at, 0)
        self._file.seek(self._start + self._at)
        data: bytes = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data
