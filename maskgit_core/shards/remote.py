"""Token shards that are not on a local disk: fetched shard by shard through `webdataset`, kept in a local folder.

The order is still one exact function of (seed, position) for all ranks and workers, and resuming still costs nothing;
but it shuffles in windows, so that only a few shards are needed at a time: each epoch takes the shards in a new order,
a window of them together, and permutes all samples of a window.

    shards = RemoteShards("https://.../imagenet", cache="/scratch/tokens")
    batches = Batches(shards, batch_size=256, seed=0, prefetch=64)

Shapes: B batch, L tokens, V variants, S shards.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.files import publish
from maskgit_core.order import draw_variants, mix, permute
from maskgit_core.shards.fetching import Fetched, check_address
from maskgit_core.shards.format import Layout, read_labels
from maskgit_core.shards.reader import check_manifest
from maskgit_core.shards.writer import MANIFEST

MAX_MANIFEST_BYTES = 256 * 1024 * 1024
FIRST_STALL_S = 15.0  # whoever waits for the first answer is a person


class RemoteShards:
    """A finished cache elsewhere, read like `TokenShards`.

    Args:
        url: the folder with the shards and their manifest: http(s), s3, gs, hf, file or a path (a network disk).
        cache: local folder for fetched shards, verified by their sha256; may be shared by processes.
        window: shards shuffled together.
        cache_bytes: the oldest fetched shards are deleted beyond this size; None: keep all.

    Raises:
        DataError: the manifest or a shard cannot be fetched or is not what the manifest states.
    """

    def __init__(self, url: str, cache: str | Path, *, window: int = 8, cache_bytes: int | None = None) -> None:
        check_address(url)
        self.url, self.cache, self.window, self.cache_bytes = url.rstrip("/"), Path(cache), window, cache_bytes
        self.manifest = self._read_manifest()
        self.layout = Layout.from_json(self.manifest)
        self.codebook_size: int = self.layout.codebook_size
        self.grid: tuple[int, int] = self.layout.grid
        self.num_tokens = self.grid[0] * self.grid[1]
        self.num_classes: int | None = self.manifest.get("num_classes")
        self.num_variants: int = self.layout.num_variants
        self._counts = np.array([shard["count"] for shard in self.manifest["shards"]], dtype=np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._counts)])
        self._open: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self.manifest["num_samples"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.url, self.cache, self.window, self.cache_bytes)

    # -- order ------------------------------------------------------------------------------------------------------
    def samples_at(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples and variants at any positions of the stream: two int64 arrays of the shape of `positions`."""
        positions = np.asarray(positions, dtype=np.int64)
        samples, variants = np.empty(positions.shape, dtype=np.int64), np.empty(positions.shape, dtype=np.int64)
        epochs, offsets = np.divmod(positions, len(self))
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            key = mix(mix(seed) + epoch)
            samples[here] = self._in_epoch(offsets[here], key)
            variants[here] = draw_variants(samples[here], key, self.num_variants)
        return samples, variants

    def _in_epoch(self, offsets: np.ndarray, key: int) -> np.ndarray:
        num_shards = len(self._counts)
        order = permute(np.arange(num_shards), num_shards, mix(key + 3)).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(self._counts[order])])  # by place in this epoch's order
        edges = ends[np.r_[0 : num_shards : self.window, num_shards]]  # of windows
        windows = np.searchsorted(edges, offsets, side="right") - 1
        samples = np.empty(len(offsets), dtype=np.int64)
        for window in np.unique(windows).tolist():
            here = windows == window
            size = int(edges[window + 1] - edges[window])
            inside = (
                permute(offsets[here] - edges[window], size, mix(key + 4) + window).astype(np.int64) + edges[window]
            )
            places = np.searchsorted(ends, inside, side="right") - 1
            samples[here] = self._firsts[order[places]] + inside - ends[places]
        return samples

    # -- reading ----------------------------------------------------------------------------------------------------
    def gather(
        self,
        indices: np.ndarray | Sequence[int],
        variants: np.ndarray | Sequence[int] | int = 0,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, L) int64 and labels (B,) int64 of any samples; fetches the shards it needs."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"sample indices must lie in [0, {len(self)})")
        chosen = np.broadcast_to(np.asarray(variants, dtype=np.int64), indices.shape)
        out = np.empty((len(indices), self.num_tokens), dtype=np.int64) if out is None else out
        labels = np.empty(len(indices), dtype=np.int64)
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        for shard in np.unique(owners).tolist():
            here = np.nonzero(owners == shard)[0]
            data, rows = self._shard(shard), indices[here] - self._firsts[shard]
            count = int(self._counts[shard])
            tokens = self.layout.array(data, "tokens.npy", count)[rows, chosen[here]]
            out[here] = tokens.reshape(len(here), -1)
            labels[here] = read_labels(self.layout.array(data, "cls", count)[rows])
        return out, labels

    def _shard(self, number: int) -> np.ndarray:
        """A shard's bytes, mapped from the local copy; the last two windows stay open."""
        if number not in self._open:
            path = self._local(number)
            self._open[number] = np.memmap(path, dtype=np.uint8, mode="r")
            while len(self._open) > 2 * self.window:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _local(self, number: int) -> Path:
        entry = self.manifest["shards"][number]
        # Named by content, so that two caches may share a folder and a changed one is fetched anew.
        path = self.cache / f"{entry['sha256'][:16]}-{entry['name']}"
        if not (path.is_file() and path.stat().st_size == entry["bytes"]):
            path.unlink(missing_ok=True)
            self._make_room(int(entry["bytes"]))
            publish(path, lambda temporary: self._fetch(entry, temporary), replace=False)
        os.utime(path)
        return path

    def _fetch(self, entry: dict[str, Any], temporary: Path) -> None:
        hashed = hashlib.sha256()
        size = 0
        with Fetched(f"{self.url}/{entry['name']}") as stream, open(temporary, "wb") as file:
            while size <= int(entry["bytes"]) and (piece := stream.read(1 << 20)):
                size += len(piece)
                hashed.update(piece)
                file.write(piece)
        if hashed.hexdigest() != entry["sha256"]:
            raise DataError(
                f"{self.url}/{entry['name']}: {size} bytes came and their sha256 is not the manifest's "
                f"({entry['bytes']} bytes); fetch again, or verify the cache where it lies"
            )

    def _make_room(self, wanted: int) -> None:
        if self.cache_bytes is None:
            return
        files = sorted((p for p in self.cache.glob("*.tar")), key=lambda p: p.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in files) + wanted
        while files and total > self.cache_bytes:
            total -= files[0].stat().st_size
            files.pop(0).unlink(missing_ok=True)  # what is mapped stays readable

    def _read_manifest(self) -> dict[str, Any]:
        url = f"{self.url}/{MANIFEST}"
        with Fetched(url, FIRST_STALL_S) as stream:
            text = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise DataError(f"{url}: has more than {MAX_MANIFEST_BYTES} bytes, so it is no manifest of token shards")
        try:
            return check_manifest(url, json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{url}: not readable as JSON ({error}); cache the tokens again") from None


def _again(url: str, cache: Path, window: int, cache_bytes: int | None) -> RemoteShards:
    return RemoteShards(url, cache, window=window, cache_bytes=cache_bytes)
