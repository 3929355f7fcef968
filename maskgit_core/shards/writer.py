"""Writes token shards: whole or not at all, the same bytes for the same samples, safe among several writers.

A shard is made complete in memory, written under a temporary name, synced, and linked to its name only if nothing is
there yet: the first writer wins. Its index (`shard-000000.json`) is a pure function of the archive's bytes, so any
process can derive it again, and it is the mark that the shard is done. The manifest comes last of all.

Shapes: N samples, V variants, H × W grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.files import publish
from maskgit_core.shards.format import (
    BLOCK,
    END_OF_ARCHIVE,
    LABEL_CHARS,
    LONG_KEYS,
    Layout,
    Member,
    encode_key,
    read_labels,
)

FORMAT = "maskgit-token-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_CHECKSUM = slice(148, 156)


@dataclass(frozen=True)
class Samples:
    """The content of one shard; arrays share the first dimension N.

    Args:
        keys: N unique names.
        labels: (N,) integers; -1 where there is none.
        tokens: (N, V, H, W) integers in [0, codebook_size).
        boxes: (N, V, 5) int32 or None.
        latents: (N, V, C, H, W) float16 or None.
    """

    keys: Sequence[str]
    labels: np.ndarray
    tokens: np.ndarray
    boxes: np.ndarray | None = None
    latents: np.ndarray | None = None


def shard_name(number: int) -> str:
    """`shard-000007.tar`."""
    return f"shard-{number:06d}.tar"


# -- bytes ----------------------------------------------------------------------------------------------------------
def member_header(member: Member) -> np.ndarray:
    """The 512 bytes of a member's tar header with an empty name and the checksum not yet filled in."""
    header = bytearray(BLOCK)
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = f"{len(member.head) + member.array_bytes:011o}\0".encode()
    header[136:148] = b"00000000000\0"
    header[_CHECKSUM] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:337] = header[337:345] = b"0000000\0"
    return np.frombuffer(bytes(header), dtype=np.uint8)


def octal_checksums(sums: np.ndarray) -> np.ndarray:
    """(N,) sums as (N, 8) characters: six octal digits, NUL, space."""
    digits = (sums.astype(np.uint32)[:, None] >> np.arange(15, -1, -3, dtype=np.uint32)) & np.uint32(7)
    text = np.zeros((len(sums), 8), dtype=np.uint8)
    text[:, :6] = digits + ord("0")
    text[:, 7] = ord(" ")
    return text


def build_shard(layout: Layout, samples: Samples) -> list[bytes | memoryview]:
    """The shard's bytes, in pieces to be written one after another.

    Raises:
        DataError: an id outside the codebook, a key twice, an array of the wrong shape.
    """
    stems = _checked_stems(layout, samples)
    count = len(stems)
    blob = np.zeros((count, layout.stride), dtype=np.uint8)
    flat = blob.reshape(-1)
    names = np.array(stems, dtype="S100").view(np.uint8).reshape(count, 100)
    name_sums = names.sum(axis=1, dtype=np.uint32)
    ends = (names != 0).sum(axis=1, dtype=np.int64)[:, None]
    rows = np.arange(count)[:, None]
    for suffix, member in layout.members.items():
        header, tail = member_header(member), np.frombuffer(f".{suffix}".encode(), dtype=np.uint8)
        blob[:, member.offset : member.offset + BLOCK] = header
        blob[:, member.offset : member.offset + 100] = names
        blob[rows, member.offset + ends + np.arange(len(tail))] = tail
        sums = name_sums + np.uint32(header.sum(dtype=np.uint32) + tail.sum(dtype=np.uint32))
        blob[:, member.offset + _CHECKSUM.start : member.offset + _CHECKSUM.stop] = octal_checksums(sums)
        blob[:, member.offset + BLOCK : member.data_offset] = np.frombuffer(member.head, dtype=np.uint8)
        if suffix != "cls":
            layout.array(flat, suffix, count)[:] = getattr(samples, suffix.split(".")[0])
    labels = np.array([f"{label:0{LABEL_CHARS}d}" for label in samples.labels.tolist()], dtype=f"S{LABEL_CHARS}")
    layout.array(flat, "cls", count)[:] = labels.view("S1").reshape(count, LABEL_CHARS)
    cut = {stem: key for stem, key in zip(stems, samples.keys, strict=True) if "~" in stem}
    return [blob.reshape(-1).data, *(_loose_member(LONG_KEYS, cut) if cut else []), END_OF_ARCHIVE]


def _checked_stems(layout: Layout, samples: Samples) -> list[str]:
    stems = [encode_key(key) for key in samples.keys]
    count = len(stems)
    if len(set(stems)) != count:
        seen: set[str] = set()
        twice = next(key for key, stem in zip(samples.keys, stems, strict=True) if stem in seen or seen.add(stem))  # type: ignore[func-returns-value]
        raise DataError(f"{twice}: this key occurs twice in one shard; every sample of a dataset needs its own key")
    for suffix, member in layout.members.items():
        array = samples.labels[:, None] if suffix == "cls" else getattr(samples, suffix.split(".")[0])
        expected = (count, 1) if suffix == "cls" else (count, *member.shape)
        if array is None or array.shape != expected:
            shape = None if array is None else tuple(array.shape)
            raise DataError(f"{suffix}: shape {shape} does not fit the shard's layout; expected {expected}")
    if count and not _lie_below(samples.tokens, layout.codebook_size):
        low, high = int(samples.tokens.min()), int(samples.tokens.max())
        raise DataError(
            f"tokens: ids from {low} to {high} do not lie in [0, {layout.codebook_size}); check the tokenizer"
        )
    return stems


def _lie_below(tokens: np.ndarray, limit: int) -> bool:
    """True where all ids are in [0, limit); one pass, as a negative number read as unsigned is very large."""
    if tokens.dtype.kind == "i" and tokens.flags.c_contiguous:
        return int(tokens.view(f"u{tokens.dtype.itemsize}").max()) < min(limit, 1 << (8 * tokens.dtype.itemsize - 1))
    return int(tokens.min()) >= 0 and int(tokens.max()) < limit


def _loose_member(name: str, value: Any) -> list[bytes]:
    data = json.dumps(value, sort_keys=True).encode()
    header = member_header(Member("", np.dtype("u1"), (len(data),), 0)).copy()
    size = f"{len(data):011o}\0".encode()
    header[124:136] = np.frombuffer(size, dtype=np.uint8)
    header[: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    header[_CHECKSUM] = octal_checksums(np.array([int(header.sum(dtype=np.int64))]))[0]
    return [header.tobytes(), data, bytes(-len(data) % BLOCK)]


# -- files ----------------------------------------------------------------------------------------------------------
def write_shard(folder: Path, number: int, layout: Layout, samples: Samples) -> dict[str, Any]:
    """Publishes shard `number` and its index; returns the index. A shard that is already there is left as it is."""
    path = folder / shard_name(number)
    pieces = build_shard(layout, samples)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.writelines(pieces)

    with ThreadPoolExecutor(1) as aside:  # hashed while the disk is waited for
        digest = aside.submit(_sha256, pieces)
        won = publish(path, write, replace=False, sync_folder=False)  # the index follows
    if not won:
        return index_shard(path, layout)  # what the first writer made
    labels = np.asarray(samples.labels, dtype=np.int64)
    return _publish_index(path, sum(len(piece) for piece in pieces), digest.result(), labels)


def _sha256(pieces: Sequence[bytes | memoryview]) -> str:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def index_shard(path: Path, layout: Layout) -> dict[str, Any]:
    """Derives and publishes the index of a shard from its bytes: count, size, sha256, number of samples per class."""
    with open(path, "rb") as file:
        data = np.memmap(file, dtype=np.uint8, mode="r")
        digest = hashlib.sha256(data.data).hexdigest()
    return _publish_index(
        path, int(data.size), digest, read_labels(layout.array(data, "cls", count_samples(data, layout)))
    )


def _publish_index(path: Path, size: int, digest: str, labels: np.ndarray) -> dict[str, Any]:
    values, counts = np.unique(labels, return_counts=True)
    index = {
        "name": path.name,
        "count": len(labels),
        "bytes": size,
        "sha256": digest,
        "class_counts": {str(v): int(c) for v, c in zip(values.tolist(), counts.tolist(), strict=True)},
    }
    text = json.dumps(index, sort_keys=True, ensure_ascii=False) + "\n"  # without an indent json is ten times as fast
    # An index torn by a power failure is no index, and is derived again from its shard.
    publish(path.with_suffix(".json"), lambda temporary: temporary.write_text(text), durable=False)
    return index


def count_samples(data: np.ndarray, layout: Layout) -> int:
    """The number of samples at the head of a shard's bytes: as long as a `.cls` member begins where one should."""
    low, high = 0, data.size // layout.stride + 1
    while high - low > 1:  # samples come first and without gaps, so halving finds the last one
        middle = (low + high) // 2
        first = (middle - 1) * layout.stride
        low, high = (middle, high) if b".cls\0" in data[first : first + 101].tobytes() else (low, middle)
    return low


def write_json(path: Path, value: Any) -> None:
    """Publishes JSON with sorted keys."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    publish(path, lambda temporary: temporary.write_text(text))


def read_index(folder: Path, number: int) -> dict[str, Any] | None:
    """The index of a finished shard, or None where it is not (yet) done."""
    path = folder / shard_name(number)
    try:
        index: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        return index if path.stat().st_size == index["bytes"] else None
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


def write_manifest(folder: Path, layout: Layout, indexes: Sequence[dict[str, Any]], **about: Any) -> dict[str, Any]:
    """Publishes `manifest.json`, which makes the set of shards in `folder` whole.

    Args:
        indexes: of all shards, in order; all but the last hold the same number of samples.
        about: what else a reader should know: `num_classes`, `variants`, `tokenizer`, `dataset`, `encoding`.
    """
    classes: dict[str, int] = {}
    for index in indexes:
        for label, count in index["class_counts"].items():
            classes[label] = classes.get(label, 0) + count
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **layout.to_json(),
        **about,
        "num_samples": sum(index["count"] for index in indexes),
        "class_counts": dict(sorted(classes.items(), key=lambda item: int(item[0]))),
        "shards": [{key: index[key] for key in ("name", "count", "bytes", "sha256")} for index in indexes],
    }
    write_json(folder / MANIFEST, manifest)
    return manifest
