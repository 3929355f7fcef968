"""Endless, shuffled, resumable training batches, the same for any number of ranks and workers.

The stream's order is `maskgit_core/order.py`'s: global batch g holds positions g * batch_size ... of it, and each rank
takes one contiguous slice of every global batch. The only state is the number of samples consumed.

Shapes: B this rank's share of the batch, L tokens.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from maskgit_core.devices import use_bound_device
from maskgit_core.errors import DataError
from maskgit_core.order import samples_at
from maskgit_core.refusals import check_mapped
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.remote import RemoteShards

T = TypeVar("T")
#: (seed, positions of the stream) -> (samples, variants)
Locate = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
LOOK_AHEAD = 8192  # positions whose order is computed at once


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch.

    Args:
        tokens_BL: int64 token ids.
        labels_B: int64 class labels; -1 where the dataset has none.
        indices_B: int64 positions in the training stream: unique over the whole training, the same for any world size.
        samples_B: int64 indices of the samples in the dataset.
        variants_B: int64 which variant of each sample.
    """

    tokens_BL: torch.Tensor
    labels_B: torch.Tensor
    indices_B: torch.Tensor
    samples_B: torch.Tensor
    variants_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices_B)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; asynchronous where it is in pinned memory."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        return Batch(*(tensor.pin_memory() for tensor in vars(self).values()))


def rank_slice(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and end position of a rank's slice in every global batch; sizes differ by at most one."""
    return batch_size * rank // world_size, batch_size * (rank + 1) // world_size


class Order:
    """Which positions, samples and variants one rank sees: the order without the tokens.

    Iterating gives `(indices_B, samples_B, variants_B)` int64 arrays, one triple a global batch, for ever. Training on
    images encoded on the fly uses it to see exactly what a cache would have shown.

    Args:
        num_samples, num_variants: of the dataset.
        batch_size: global batch size, over all ranks.
        seed: of the order.
        rank, world_size: of this process.
        start: number of global samples already consumed.
        step: yield only every `step`-th global batch (worker processes take turns).
        skip: global batches to leave out at the beginning.
        locate: (seed, positions) -> (samples, variants), where the shards have an order of their own.

    Raises:
        DataError: an impossible combination; names the argument.
    """

    def __init__(
        self,
        num_samples: int,
        num_variants: int = 1,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        step: int = 1,
        skip: int = 0,
        locate: Locate | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise DataError(f"rank: {rank} does not lie in [0, {world_size}); check RANK and WORLD_SIZE")
        if batch_size < world_size:
            raise DataError(f"batch_size: {batch_size} is smaller than the number of processes {world_size}; raise it")
        if start < 0:
            raise DataError(f"start: {start} is negative; it is the number of samples already consumed")
        self.num_samples, self.num_variants = num_samples, num_variants
        self.batch_size, self.seed, self.start = batch_size, seed, start
        self.rank, self.world_size = rank, world_size
        self.step, self.skip, self.locate = step, skip, locate

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for chunk in self.chunks():
            yield from zip(*chunk, strict=True)

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Several batches at once: arrays (batches, B) of indices, samples and variants."""
        low, high = rank_slice(self.batch_size, self.rank, self.world_size)
        # Each epoch has its own permutation, so with few samples the look-ahead is held to a few epochs.
        few_epochs = 8 * self.num_samples // (self.batch_size * self.step)
        ahead = max(1, min(LOOK_AHEAD // (high - low), few_epochs))
        batch = self.skip
        while True:
            starts = self.start + self.batch_size * (batch + self.step * np.arange(ahead, dtype=np.int64)) + low
            indices = starts[:, None] + np.arange(high - low, dtype=np.int64)
            yield indices, *self.at(indices)
            batch += ahead * self.step

    def at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples and variants at any positions of the stream; arrays of the same shape."""
        if self.locate is not None:
            return self.locate(self.seed, indices)
        return samples_at(self.seed, indices, self.num_samples, self.num_variants)

    def part(self, worker: int, num_workers: int) -> Order:
        """The share of one of several workers that take turns, batch by batch."""
        share = copy.copy(self)
        share.skip, share.step = self.skip + worker * self.step, self.step * num_workers
        return share


class Batches:
    """Training batches from token shards, for ever.

    Args:
        shards: the cache, local or remote.
        batch_size: global batch size, over all ranks.
        seed: of the order.
        rank, world_size: of this process.
        start: number of global samples already consumed; any number, reached at once.
        num_workers: processes that read ahead from remote shards; shards on disk are mapped, and read in this process.
        prefetch: batches to hold ready; with `num_workers=0` a thread reads them.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.
        locate: (seed, positions) -> (samples, variants) instead of the shards' own order, as where some are held out.

    Raises:
        DataError: an impossible combination; names the argument.
    """

    def __init__(
        self,
        shards: TokenShards | RemoteShards,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        num_workers: int = 0,
        prefetch: int = 0,
        pin_memory: bool = False,
        locate: Locate | None = None,
    ) -> None:
        if isinstance(shards, TokenShards):
            check_mapped(num_workers)
        self.shards = shards
        self.order = Order(
            len(shards),
            shards.num_variants,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start=start,
            locate=locate or shards.samples_at,
        )
        self.num_workers, self.prefetch, self.pin_memory = num_workers, prefetch, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers > 0:
            yield from self._from_workers()
        elif self.prefetch > 0:
            yield from ahead(self._read(self.order, self.pin_memory), self.prefetch)
        else:
            yield from self._read(self.order, self.pin_memory)

    def _read(self, order: Order, pin_memory: bool = False) -> Iterator[Batch]:
        pool, shards = Pool(), self.shards
        for chunk in order.chunks():
            # Places of samples are computed for many batches at once: small arrays cost mostly their calls.
            places = shards.find(chunk[1]) if isinstance(shards, TokenShards) else chunk[1]
            if isinstance(shards, TokenShards):
                shards.will_need(places)
            for indices, samples, variants, places_of_chunk in zip(*chunk, places, strict=True):
                shape = (len(indices), shards.num_tokens)
                if pin_memory:
                    tokens = torch.empty(shape, dtype=torch.int64, pin_memory=True)
                else:
                    tokens = torch.from_numpy(pool.take(shape))
                if isinstance(shards, TokenShards):
                    labels = shards.read(samples, places_of_chunk, variants, tokens.numpy())
                else:
                    labels = shards.gather(samples, variants, out=tokens.numpy())[1]
                yield Batch(tokens, *map(torch.from_numpy, (labels, indices, samples, variants)))

    def _from_workers(self) -> Iterator[Batch]:
        loader: torch.utils.data.DataLoader[Batch] = torch.utils.data.DataLoader(
            _Turns(self),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=max(2, self.prefetch),
            pin_memory=self.pin_memory,
        )
        yield from loader


class _Turns(torch.utils.data.IterableDataset[Batch]):
    """Worker w of W reads batches w, w + W, ...; the loader takes them in turn, so the order is that of one reader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        order = self.batches.order if info is None else self.batches.order.part(info.id, info.num_workers)
        return self.batches._read(order)


class Pool:
    """Arrays that are used again once nobody holds them: fresh memory costs more than filling it.

    A tensor made by `torch.from_numpy` keeps its array alive, and so do all its views, so the reference count tells.
    """

    MOST = 16

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = [np.empty(0)]  # held by nobody else: shows what a free array's count is
        self._free_count = self._count(0)

    def _count(self, place: int) -> int:
        return sys.getrefcount(self._arrays[place])

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An int64 array with any content."""
        for place in range(1, len(self._arrays)):
            if self._count(place) == self._free_count and self._arrays[place].shape == shape:
                return self._arrays[place]
        fresh = np.empty(shape, dtype=np.int64)
        if len(self._arrays) <= self.MOST:
            self._arrays.append(fresh)
        return fresh


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made ahead by a thread; an error there is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not closed.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            use_bound_device()  # pinning and copies made here belong to this process's GPU
            for item in items:
                put((True, item))
                if closed.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        closed.set()
        thread.join(timeout=5)
