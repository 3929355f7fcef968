"""Tells what a cache holds and whether it is whole: sizes, checksums, tar structure, ids, labels and counts.

Shapes: N samples of one shard, V variants, K codebook.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.shards.format import BLOCK, LONG_KEYS, Layout, read_labels
from maskgit_core.shards.reader import TokenShards, read_manifest
from maskgit_core.shards.writer import MANIFEST, member_header, octal_checksums

AGAIN = "delete it and run cache_tokens again: only missing shards are made"


def describe(folder: Path) -> dict[str, Any]:
    """The content of a cache as plain data; reads all tokens to count how much of the codebook is used.

    Raises:
        DataError: it cannot be opened.
    """
    shards = TokenShards(folder)
    manifest = shards.manifest
    used = np.zeros(shards.codebook_size, dtype=np.int64)
    for part in np.array_split(np.arange(len(shards)), max(1, len(shards) // 4096)):
        for variant in range(shards.num_variants):
            used += np.bincount(shards.gather(part, variant)[0].ravel(), minlength=shards.codebook_size)
    shares = used[used > 0] / used.sum()
    counts = list(manifest.get("class_counts", {}).values())
    size = sum(shard["bytes"] for shard in manifest["shards"])
    return {
        "num_samples": len(shards),
        "num_shards": len(manifest["shards"]),
        "bytes": size,
        "bytes_per_sample": size / len(shards),
        "grid": list(shards.grid),
        "variants": manifest.get("variants", [f"variant_{i}" for i in range(shards.num_variants)]),
        "dtype": shards.layout.members["tokens.npy"].dtype.str,
        "members": list(shards.layout.members),
        "num_classes": shards.num_classes,
        "samples_per_class": [min(counts), max(counts)] if counts else None,
        "codebook_size": shards.codebook_size,
        "codebook_used": int((used > 0).sum()),
        "codebook_perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        **{key: manifest[key] for key in ("tokenizer", "dataset", "encoding") if key in manifest},
    }


def problems(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a cache, one line each, each naming its file; nothing where it is whole."""
    try:
        manifest = read_manifest(folder)
        layout = Layout.from_json(manifest)
    except DataError as error:
        yield str(error)
        return
    folder = folder / "files" if (folder / "files" / MANIFEST).is_file() else folder
    readable: list[np.ndarray] = []
    for entry in manifest["shards"]:
        path = folder / str(entry["name"])
        for line in _shard_problems(path, entry, layout, manifest.get("num_classes")):
            if isinstance(line, str):
                yield line
            else:
                readable.append(line)
    if len(readable) == len(manifest["shards"]):  # else these would only say again that a shard is not whole
        labels = np.concatenate(readable) if readable else np.zeros(0, dtype=np.int64)
        yield from _manifest_problems(folder / MANIFEST, manifest, labels)
    known = {str(entry["name"]) for entry in manifest["shards"]}
    for extra in sorted(other.name for other in folder.glob("*.tar") if other.name not in known):
        yield f"{folder / extra}: is not listed in the manifest; delete it"


def _manifest_problems(path: Path, manifest: dict[str, Any], labels: np.ndarray) -> Iterator[str]:
    if len(labels) != manifest["num_samples"]:
        yield f"{path}: num_samples is {manifest['num_samples']}, the shards hold {len(labels)}; cache the tokens again"
    values, counts = np.unique(labels, return_counts=True)
    counted = {str(value): int(count) for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
    if "class_counts" in manifest and counted != manifest["class_counts"]:
        yield f"{path}: class_counts do not agree with the labels in the shards; cache the tokens again"


def _shard_problems(
    path: Path, entry: dict[str, Any], layout: Layout, num_classes: int | None
) -> Iterator[str | np.ndarray]:
    """Lines about one shard, and its labels where they can be read."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        yield f"{path}: this shard is missing; run cache_tokens again: only missing shards are made"
        return
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror}); check its permissions and the disk"
        return
    if data.size != entry["bytes"]:
        kind = "torn" if data.size < entry["bytes"] else "longer than it was"
        yield f"{path}: {data.size} bytes where the manifest says {entry['bytes']}; the shard is {kind}, {AGAIN}"
        return
    if (digest := hashlib.sha256(data.data).hexdigest()) != entry["sha256"]:
        fits = int(entry["count"]) * layout.stride <= data.size
        broken = first_broken_sample(data, layout, int(entry["count"])) if fits else None
        where = "" if broken is None else f" (first seen in a header of sample {broken})"
        yield (
            f"{path}: sha256 {digest[:12]}... is not the manifest's {str(entry['sha256'])[:12]}...; "
            f"its bytes changed{where}, {AGAIN}"
        )
        return
    count = int(entry["count"])
    if count * layout.stride > data.size:
        yield f"{path}: too short for the {count} samples that the manifest says; {AGAIN}"
        return
    if (broken := first_broken_sample(data, layout, count)) is not None:
        yield f"{path}: the archive is broken at sample {broken} (byte {broken * layout.stride}); {AGAIN}"
        return
    if not _ends_well(data, layout, count):
        yield f"{path}: after {count} samples comes no end of the archive; {AGAIN}"
    tokens = layout.array(data, "tokens.npy", count)
    if count and int(tokens.max()) >= layout.codebook_size:
        sample = int(tokens.reshape(count, -1).max(1).argmax())
        yield (
            f"{path}: id {int(tokens.max())} is out of range in sample {sample}; "
            f"the codebook has {layout.codebook_size} entries, {AGAIN}"
        )
    labels = read_labels(layout.array(data, "cls", count))
    top = num_classes if num_classes is not None else 1 << 62
    if count and not -1 <= int(labels.min()) <= int(labels.max()) < top:
        yield f"{path}: labels from {labels.min()} to {labels.max()} do not lie in [-1, {num_classes}); {AGAIN}"
    yield labels


def first_broken_sample(data: np.ndarray, layout: Layout, count: int) -> int | None:
    """The first sample whose tar or npy headers are not what they must be, or None.

    Args:
        data: uint8, the shard's bytes.
    """
    blob = data[: count * layout.stride].reshape(count, layout.stride)
    broken = np.zeros(count, dtype=bool)
    for member in layout.members.values():
        header = blob[:, member.offset : member.offset + BLOCK]
        constant = member_header(member)
        sums = header[:, :100].sum(axis=1, dtype=np.int64) + int(constant.sum(dtype=np.int64))
        broken |= (header[:, 100:148] != constant[100:148]).any(1) | (header[:, 156:] != constant[156:]).any(1)
        broken |= (header[:, 148:156] != octal_checksums(sums)).any(1)
        head = np.frombuffer(member.head, dtype=np.uint8)
        broken |= (blob[:, member.offset + BLOCK : member.data_offset] != head).any(1)
        broken |= ~_has_suffix(header[:, :100], f".{member.suffix}".encode())
    characters = layout.array(data, "cls", count).view(np.uint8)
    digits = (characters >= ord("0")) & (characters <= ord("9"))
    broken |= ~(digits[:, 1:].all(1) & (digits[:, 0] | (characters[:, 0] == ord("-"))))
    return int(broken.argmax()) if broken.any() else None


def _has_suffix(names: np.ndarray, suffix: bytes) -> np.ndarray:
    """Which of (N, 100) names, padded with NUL, end with `suffix`."""
    lengths = (names != 0).sum(1)
    places = lengths[:, None] - len(suffix) + np.arange(len(suffix))
    ends = np.take_along_axis(names, places.clip(0), axis=1)
    fits: np.ndarray = (ends == np.frombuffer(suffix, dtype=np.uint8)).all(1) & (lengths > len(suffix))
    return fits


def _ends_well(data: np.ndarray, layout: Layout, count: int) -> bool:
    rest = data[count * layout.stride :]
    if rest[: len(LONG_KEYS)].tobytes() == LONG_KEYS.encode():
        try:
            size = int(rest[124:135].tobytes(), 8)
            json.loads(rest[BLOCK : BLOCK + size].tobytes())
        except ValueError:
            return False
        rest = rest[BLOCK + -(-size // BLOCK) * BLOCK :]
    return rest.size == 2 * BLOCK and not rest.any()
