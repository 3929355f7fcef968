"""Reads token shards: all shards of a cache mapped side by side, any samples gathered at memory speed.

The shards' files are mapped into one stretch of address space, so a gather over a thousand shards is one indexing
operation and no file is read before its samples are asked for. Nothing is copied until the gather, and the reader's own
memory stays small whatever the size of the cache.

Shapes: B batch, L tokens, V variants.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.order import samples_at
from maskgit_core.shards.format import BLOCK, LABEL_CHARS, Layout, decode_key
from maskgit_core.shards.prefetching import READ_AROUND, will_need
from maskgit_core.shards.writer import FORMAT, FORMAT_VERSION, MANIFEST

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\Z")
_MAP_FIXED = 0x10  # the same on Linux and macOS
_UNREAD = np.iinfo(np.int64).min
_POWERS = 10.0 ** np.arange(LABEL_CHARS - 1, -1, -1)
_ZEROS = float(ord("0") * _POWERS.sum())  # what ten zeros add up to
_MINUS = float((ord("-") - ord("0")) * _POWERS[0])  # what a minus sign adds

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in `folder` (or in its `files/`), checked for form.

    Raises:
        DataError: there is none, or it is not a manifest of token shards.
    """
    path = _manifest_path(Path(folder))
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: no manifest, so this is not a finished set of token shards; make one with the cache_tokens stage"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); cache the tokens again") from None
    return check_manifest(str(path), manifest)


def check_manifest(path: str, manifest: Any) -> dict[str, Any]:
    """`manifest` if it describes token shards that can be read safely; it may come from elsewhere.

    Args:
        path: of the shard, for messages.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of token shards; expected format {FORMAT!r}")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise DataError(
            f"{path}: format_version {version} is not {FORMAT_VERSION}; read it with the release that wrote it"
        )
    missing = [key for key in ("codebook_size", "grid", "num_variants", "num_samples", "shards") if key not in manifest]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; cache the tokens again")
    _check_shard_list(path, manifest)
    return manifest


def _check_shard_list(path: str, manifest: dict[str, Any]) -> None:
    """Refuses a manifest whose shards could not be mapped safely: it may come from elsewhere."""
    try:
        stride = Layout.from_json(manifest).stride
        for shard in manifest["shards"]:
            if not _PLAIN_NAME.match(shard["name"]):
                raise DataError(
                    f"{path}: the shard name {shard['name']!r} is not a plain file name; do not use this cache"
                )
            if not 0 <= int(shard["count"]) * stride <= int(shard["bytes"]):
                raise DataError(f"{path}: {shard['name']} cannot hold {shard['count']} samples; cache the tokens again")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: an entry is missing or of the wrong form ({error!r}); cache the tokens again"
        ) from None


def _manifest_path(folder: Path) -> Path:
    inner = folder / "files" / MANIFEST
    return inner if inner.is_file() else folder / MANIFEST


class TokenShards:
    """A finished cache, open for reading.

    Args:
        folder: the folder with the shards and their manifest.

    Attributes:
        codebook_size: K.
        grid: (H, W).
        num_tokens: H * W.
        num_classes: None where the dataset has no labels.
        num_variants: V.
        manifest: all that is known about the cache.

    Raises:
        DataError: no manifest, a shard missing or of another size than the manifest says; names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.manifest = read_manifest(Path(folder))
        self.folder = _manifest_path(Path(folder)).parent
        self.layout = Layout.from_json(self.manifest)
        self.codebook_size: int = self.layout.codebook_size
        self.grid: tuple[int, int] = self.layout.grid
        self.num_tokens = self.grid[0] * self.grid[1]
        self.num_classes: int | None = self.manifest.get("num_classes")
        self.num_variants: int = self.layout.num_variants
        self._counts = np.array([shard["count"] for shard in self.manifest["shards"]], dtype=np.int64)
        self._check_counts()
        self._map()

    def __len__(self) -> int:
        return int(self.manifest["num_samples"])

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path]]:
        return TokenShards, (self.folder,)

    def _check_counts(self) -> None:
        path = self.folder / MANIFEST
        if int(self._counts.sum()) != len(self):
            raise DataError(
                f"{path}: num_samples is {len(self)} but its shards hold {int(self._counts.sum())}; "
                "cache the tokens again"
            )
        if len(self) == 0:
            raise DataError(f"{path}: holds no samples; cache the tokens of a dataset with at least one image")
        if len(set(self._counts[:-1].tolist())) > 1 or self._counts[-1] > self._counts[0]:
            raise DataError(
                f"{path}: all shards but the last must hold the same number of samples; cache the tokens again"
            )

    def _map(self) -> None:
        """Maps every shard at its place in one reserved stretch of addresses."""
        page = mmap.ALLOCATIONGRANULARITY
        sizes = [int(shard["bytes"]) for shard in self.manifest["shards"]]
        starts = np.cumsum([0, *(-(-size // page) * page for size in sizes)])
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._region = mmap.mmap(-1, int(starts[-1]), flags=flags, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._region, dtype=np.uint8)
        address = self._bytes.ctypes.data
        for shard, start, size in zip(self.manifest["shards"], starts.tolist(), sizes, strict=False):
            _map_file(self.folder / shard["name"], address + start, size)
        self._per_shard = int(self._counts[0])
        self._first_block = (starts[:-1] // BLOCK).astype(np.int64)
        self._sample_blocks = self.layout.stride // BLOCK
        self._views: dict[str, np.ndarray] = {}
        self._known_labels = np.full(len(self), _UNREAD, dtype=np.int64)

    def _rows(self, suffix: str) -> np.ndarray:
        """All places where a member's arrays may begin, one a block: overlapping views, nothing copied.

        Shape (blocks, V, values of one variant); `.cls` is one value: ten bytes move faster as one than one by one.
        """
        if suffix not in self._views:
            member = self.layout.members[suffix]
            dtype = np.dtype(f"V{LABEL_CHARS}") if suffix == "cls" else member.dtype
            variants = 1 if suffix == "cls" else self.num_variants
            values = member.array_bytes // dtype.itemsize // variants
            blocks = (self._bytes.size - member.data_offset - member.array_bytes) // BLOCK + 1
            self._views[suffix] = np.ndarray(
                shape=(blocks, variants, values),
                dtype=dtype,
                buffer=self._bytes.data,
                offset=member.data_offset,
                strides=(BLOCK, values * dtype.itemsize, dtype.itemsize),
            )
        return self._views[suffix]

    def find(self, indices: np.ndarray) -> np.ndarray:
        """The places of samples (for `read`), for any number of them at once: int64 of the same shape.

        Raises:
            IndexError: an index outside [0, len).
        """
        indices = np.asarray(indices, dtype=np.int64)
        shard = indices // self._per_shard
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"sample indices must lie in [0, {len(self)})")
        inside = indices - shard * self._per_shard
        blocks: np.ndarray = self._first_block[shard] + inside * self._sample_blocks
        return blocks

    def samples_at(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples and variants at any positions of the training stream; see `maskgit_core/order.py`."""
        return samples_at(seed, positions, len(self), self.num_variants)

    def gather(
        self,
        indices: np.ndarray | Sequence[int],
        variants: np.ndarray | Sequence[int] | int = 0,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of any samples.

        Args:
            indices: (B,) in [0, len).
            variants: (B,) or one number, in [0, V).
            out: (B, L) int64 to write the tokens into (pinned memory, for instance).

        Returns:
            (tokens (B, L) int64, labels (B,) int64; -1 means no label).
        """
        indices = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(indices), self.num_tokens), dtype=np.int64) if out is None else out
        return out, self.read(indices, self.find(indices), variants, out)

    def read(
        self, indices: np.ndarray, places: np.ndarray, variants: np.ndarray | Sequence[int] | int, out: np.ndarray
    ) -> np.ndarray:
        """Writes the tokens of samples at `places = find(indices)` into `out`; returns their labels.

        Rows are moved whole, and a label is read from the archive once.

        Args:
            indices, places: (B,) int64. variants: (B,) or one number. out: (B, L) int64.

        Returns:
            labels (B,) int64; -1 means no label.
        """
        tokens = self._whole_rows()[places, variants].view(self.layout.members["tokens.npy"].dtype)
        np.copyto(out, tokens.reshape(out.shape), casting="unsafe")
        labels: np.ndarray = self._known_labels.take(indices)
        if labels.min(initial=0) == _UNREAD:
            labels = self._labels(places)
            self._known_labels[indices] = labels
        return labels

    def will_need(self, places: np.ndarray) -> None:
        """Has the kernel read samples at `places = find(indices)`, of any shape, that are not in memory yet.

        Not in small caches: what the kernel reads around a few of the rows is all of it soon, and costs less.
        """
        if self._bytes.size < places.size * READ_AROUND:
            return
        member = self.layout.members["tokens.npy"]
        starts = self._bytes.ctypes.data + places * BLOCK
        will_need(starts, min(member.data_offset + member.array_bytes, self.layout.stride))

    def _whole_rows(self) -> np.ndarray:
        """As `_rows` of the tokens, each variant one opaque value: (blocks, V)."""
        if "rows" not in self._views:
            rows = self._rows("tokens.npy")
            size = rows.shape[2] * rows.dtype.itemsize
            offset = self.layout.members["tokens.npy"].data_offset
            self._views["rows"] = np.ndarray(
                rows.shape[:2], f"V{size}", self._bytes.data, offset, strides=rows.strides[:2]
            )
        return self._views["rows"]

    def _labels(self, blocks: np.ndarray) -> np.ndarray:
        characters = self._rows("cls")[blocks, 0, 0].view(np.uint8).reshape(-1, LABEL_CHARS)
        values: np.ndarray = characters.astype(np.float64) @ _POWERS - _ZEROS  # exact: all below 2^53
        if (negative := characters[:, 0] == ord("-")).any():
            values[negative] = _MINUS - values[negative]
        return values.astype(np.int64)

    def labels(self) -> np.ndarray:
        """Labels of all samples in order: (len,) int64."""
        return self._labels(self.find(np.arange(len(self))))

    def key(self, index: int) -> str:
        """The name of one sample, as its dataset gave it."""
        first = int(self.find(np.array([index]))[0]) * BLOCK
        name = self._bytes[first : first + 100].tobytes().split(b"\0", 1)[0].decode()
        return decode_key(name.removesuffix(".cls"), self._long_keys(index // self._per_shard) if "~" in name else {})

    def _long_keys(self, shard: int) -> dict[str, str]:
        first = int(self._first_block[shard]) * BLOCK + int(self._counts[shard]) * self.layout.stride
        header = self._bytes[first : first + BLOCK].tobytes()
        size = int(header[124:135], 8)
        keys: dict[str, str] = json.loads(self._bytes[first + BLOCK : first + BLOCK + size].tobytes())
        return keys

    def boxes(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Crop boxes (B, V, 5) int32: left, top, width, height, flipped; only where the cache has them."""
        return self._extra("boxes.npy", indices)

    def latents(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Latents (B, V, C, H, W) float16; only where the cache has them."""
        return self._extra("latents.npy", indices)

    def _extra(self, suffix: str, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        if suffix not in self.layout.members:
            raise DataError(f"{self.folder}: this cache keeps no {suffix.split('.')[0]}; ask cache_tokens for them")
        shape = self.layout.members[suffix].shape
        rows: np.ndarray = self._rows(suffix)[self.find(np.asarray(indices))]
        return rows.reshape(len(rows), *shape)


def _map_file(path: Path, address: int, size: int) -> None:
    """Maps a whole file, read-only, at `address`, over what is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DataError(
            f"{path}: this shard is missing; cache the tokens again (only missing shards are made)"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from None
    try:
        actual = os.fstat(descriptor).st_size
        if actual != size:
            raise DataError(f"{path}: {actual} bytes where the manifest says {size}; the shard is torn, cache it again")
        got = _mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
        if got != address:
            reason = os.strerror(ctypes.get_errno())
            raise DataError(f"{path}: cannot be mapped into memory ({reason}); copy the cache to a local disk")
    finally:
        os.close(descriptor)
