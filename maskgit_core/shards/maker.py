"""Encodes a dataset into token shards: decoding, encoding and writing side by side, in any number of processes.

The dataset is cut into shards by index. Pictures are decoded by threads, encoded in batches that never cross a shard
(so that a shard's bytes do not depend on who makes it), and written by a thread.

Shapes: B batch, V variants, h × w token grid.
"""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from maskgit_core.errors import DataError
from maskgit_core.images.encoding import Encoder
from maskgit_core.images.transforms import RANDOM_CROPS
from maskgit_core.images.views import Views
from maskgit_core.shards.format import Layout
from maskgit_core.shards.turns import ShardTurns
from maskgit_core.shards.writer import Samples, index_shard, read_index, shard_name, write_json, write_shard

POLL_S = 0.5
NUM_WRITERS = 2  # one shard is built while the other waits for the disk
LAYOUT = "layout.json"


class Images(Protocol):
    """A dataset: see `maskgit_core/datasets/__init__.py`."""

    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """The settings of a cache.

    Args:
        views: which views of each image are kept.
        precision: of the encoder: `fp32`; `tf32` (CUDA's faster products) and `bf16` (autocast) flip near-ties.
        shard_size: samples per shard.
        batch_size: images (with all their views) encoded at once.
        latents: also keep the encoder's continuous output as float16.
        num_workers: threads that decode pictures.
    """

    views: Views = field(default_factory=Views)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    shard_size: int = 4096
    batch_size: int = 64
    latents: bool = False
    num_workers: int = 2


@dataclass
class Clock:
    """Where the time of this process went, in seconds, and how many images it encoded."""

    images: int = 0
    decoding_wait_s: float = 0.0
    encoding_s: float = 0.0
    writing_wait_s: float = 0.0
    others_wait_s: float = 0.0
    total_s: float = 0.0

    @contextlib.contextmanager
    def count(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to one of the fields."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    def to_json(self) -> dict[str, float]:
        """Plain numbers, with the rate."""
        rate = self.images / self.total_s if self.total_s else 0.0
        return {**asdict(self), "images_per_s": rate}


@dataclass
class _Shard:
    """A shard while it is being made; arrays are filled batch by batch."""

    number: int
    first: int
    count: int
    keys: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    latents: list[np.ndarray] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return sum(map(len, self.tokens)) == self.count


class CacheMaker:
    """One process's part in making a cache.

    Args:
        dataset: what to encode.
        encoder: with what.
        folder: where finished shards are published; shared by all processes.
        settings: what is asked.
        rank, world_size: which shards to begin with.
        stop: asked between batches; when true, `run` returns early.
        wait: stay until all shards are there; else leave when those that are left are being made by others.
        report: called after every batch with (images done by all, this process's clock).
    """

    def __init__(
        self,
        dataset: Images,
        encoder: Encoder,
        folder: Path,
        settings: Settings,
        *,
        rank: int = 0,
        world_size: int = 1,
        wait: bool = True,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[int, Clock], None] = lambda done, clock: None,
    ) -> None:
        self.dataset, self.encoder, self.folder, self.settings = dataset, encoder, Path(folder), settings
        self.rank, self.world_size, self.stop, self.report = rank, world_size, stop, report
        self.wait = wait
        self.num_shards = -(-len(dataset) // settings.shard_size)
        self.keeps_boxes = settings.views.has_boxes or getattr(dataset, "crop", "") in RANDOM_CROPS
        self.clock = Clock()
        self.unreadable: list[str] = []
        self._given_up: set[int] = set()
        self._finished = 0  # samples of finished shards that this process did not encode

    def run(self) -> bool:
        """Makes shards until none is left to make; False where it was asked to stop.

        Raises:
            DataError: pictures cannot be read (all other shards are done), or the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        turns = ShardTurns(self.folder, self.num_shards, self.rank, self.world_size)
        try:
            while missing := [number for number in turns.missing() if number not in self._given_up]:
                # what is finished by now, less what this process will count again while it goes on
                self._finished = self._samples_done(missing) - self.clock.images
                self._make_available(turns)
                if self.stop():
                    return False
                if not self.wait:
                    break
                if self._still_missing(turns):
                    with self.clock.count("others_wait_s"):
                        time.sleep(POLL_S)
        finally:
            turns.close()
            self.clock.total_s += time.perf_counter() - started
        if self.unreadable:
            raise self._unreadable_error()
        for leftover in self.folder.glob(".shard-*") if self.wait else ():  # of killed processes; nobody needs them now
            leftover.unlink(missing_ok=True)
        return True

    def _samples_done(self, missing: Sequence[int]) -> int:
        return len(self.dataset) - sum(self._range(number)[1] for number in missing)

    def _still_missing(self, turns: ShardTurns) -> bool:
        return any(number not in self._given_up for number in turns.missing())

    def _unreadable_error(self) -> DataError:
        more = (
            f" (and {len(self.unreadable) - 1} more: {', '.join(self.unreadable[1:4])})" if self.unreadable[1:] else ""
        )
        return DataError(
            f"{self.unreadable[0]}{more}; {len(self.unreadable)} of {len(self.dataset)} pictures cannot be read and "
            f"{len(self._given_up)} of {self.num_shards} shards were left out, so the cache is not done; "
            "mend or remove them and run again: only missing shards are made"
        )

    def _range(self, number: int) -> tuple[int, int]:
        """First sample and number of samples of a shard."""
        first = number * self.settings.shard_size
        return first, min(self.settings.shard_size, len(self.dataset) - first)

    # -- one pass over what is free now --------------------------------------------------------------------------
    def _make_available(self, turns: ShardTurns) -> None:
        writes: collections.deque[tuple[_Shard, Future[Any]]] = collections.deque()
        launched: tuple[_Shard, Any] | None = None
        decoding = max(1, self.settings.num_workers)
        with ThreadPoolExecutor(decoding) as decoders, ThreadPoolExecutor(NUM_WRITERS) as writer:
            try:
                for shard, pictures in self._read_ahead(turns, decoders):
                    with self.clock.count("decoding_wait_s"):
                        views = self._views(shard, pictures)
                    with self.clock.count("encoding_s"):
                        encoded = None if views is None else (shard, self.encoder(views, self.settings.latents))
                        ready, launched = launched, encoded
                        self._collect(ready)
                    self._hand_over(ready, writer, writes, turns)
                    if self.stop():
                        break
                with self.clock.count("encoding_s"):
                    self._collect(launched)
                self._hand_over(launched, writer, writes, turns)
                self._settle(writes, turns, keep=0)
            finally:
                decoders.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(
        self, turns: ShardTurns, decoders: ThreadPoolExecutor
    ) -> Iterator[tuple[_Shard, list[Future[Any]]]]:
        """Batches in order, the next two already being decoded."""
        ahead: collections.deque[tuple[_Shard, list[Future[Any]]]] = collections.deque()
        for number in turns.available():
            if number in self._given_up or self._only_lacks_index(number):
                turns.release(number)
                continue
            shard = _Shard(number, *self._range(number))
            for low in range(0, shard.count, self.settings.batch_size):
                wanted = range(shard.first + low, shard.first + min(low + self.settings.batch_size, shard.count))
                ahead.append((shard, [decoders.submit(self._decode, index) for index in wanted]))
                while len(ahead) > 2:
                    yield ahead.popleft()
        yield from ahead

    def _only_lacks_index(self, number: int) -> bool:
        """Whether the shard is there (a process died right after publishing it); then makes its index."""
        path = self.folder / shard_name(number)
        if not path.exists() or not (self.folder / LAYOUT).exists():
            return False
        index_shard(path, Layout.from_json(json.loads((self.folder / LAYOUT).read_text())))
        return True

    def _decode(self, index: int) -> Any:
        try:
            sample = self.dataset[index]
            views, boxes = self.settings.views.of(sample.image, index)
            if self.keeps_boxes and not self.settings.views.has_boxes:
                boxes[:, :4] = sample.box  # of the stored picture: the dataset cut it, the views did not
            return sample.key, sample.label, views, boxes
        except DataError as error:
            return error

    def _views(self, shard: _Shard, decoding: list[Future[Any]]) -> np.ndarray | None:
        """Waits for a batch's pictures; None where the shard has one that cannot be read."""
        views = []
        for future in decoding:
            decoded = future.result()
            if isinstance(decoded, DataError):
                shard.unreadable.append(str(decoded))
                continue
            key, label, pixels, boxes = decoded
            shard.keys.append(key)
            shard.labels.append(-1 if label is None else int(label))
            shard.boxes.append(boxes)
            views.append(pixels)
        if shard.unreadable:
            if shard.number not in self._given_up:
                self._given_up.add(shard.number)
            fresh = [text for text in shard.unreadable if text not in self.unreadable]
            self.unreadable.extend(fresh)
            return None
        if len({pixels.shape for pixels in views}) > 1:
            shapes = sorted({pixels.shape[1:3] for pixels in views})
            raise DataError(f"{shard.keys[-1]}: pictures of different sizes {shapes[:3]}; let the dataset crop them")
        return np.stack(views)

    def _collect(self, ready: tuple[_Shard, Any] | None) -> None:
        """Brings a batch's tokens from the device into its shard."""
        if ready is None:
            return
        shard, (tokens, latents) = ready
        shard.tokens.append(tokens.cpu().numpy())
        if latents is not None:
            shard.latents.append(latents.cpu().numpy())
        self.clock.images += len(tokens)
        self.report(min(len(self.dataset), self._finished + self.clock.images), self.clock)

    def _hand_over(self, ready: Any, writer: ThreadPoolExecutor, writes: Any, turns: ShardTurns) -> None:
        """Gives a complete shard to the writer; waits where two are being written already."""
        if ready is not None and ready[0].complete:
            writes.append((ready[0], writer.submit(self._write, ready[0])))
        self._settle(writes, turns, keep=2)

    def _settle(self, writes: Any, turns: ShardTurns, keep: int) -> None:
        while len(writes) > keep or (writes and writes[0][1].done()):
            shard, future = writes.popleft()
            with self.clock.count("writing_wait_s"):
                future.result()
            turns.release(shard.number)

    def _write(self, shard: _Shard) -> None:
        tokens = np.concatenate(shard.tokens)
        latents = np.concatenate(shard.latents) if shard.latents else None
        layout = Layout(
            int(self.encoder.tokenizer.codebook_size),
            (int(tokens.shape[2]), int(tokens.shape[3])),
            int(tokens.shape[1]),
            self.keeps_boxes,
            None if latents is None else tuple(map(int, latents.shape[2:])),  # type: ignore[arg-type]
        )
        boxes = np.stack(shard.boxes) if layout.boxes else None
        # The layout comes before the first shard, so that no shard ever lacks it.
        if not (self.folder / LAYOUT).exists():
            write_json(self.folder / LAYOUT, layout.to_json())
        write_shard(
            self.folder, shard.number, layout, Samples(shard.keys, np.array(shard.labels), tokens, boxes, latents)
        )


def finished_indexes(folder: Path, num_shards: int) -> tuple[Layout, list[dict[str, Any]]]:
    """Layout and indexes of a complete set of shards.

    Raises:
        DataError: a shard is missing; names it.
    """
    indexes = []
    for number in range(num_shards):
        if (index := read_index(folder, number)) is None:
            raise DataError(f"{folder / shard_name(number)}: this shard is missing; run again to make it")
        indexes.append(index)
    return Layout.from_json(json.loads((folder / LAYOUT).read_text())), indexes
