"""Rows that are needed soon are read by the kernel, side by side, where they are not in memory."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np
import pytest

from maskgit_core.batches.tokens import Batches
from maskgit_core.shards import prefetching, reader
from maskgit_core.shards.format import Layout
from maskgit_core.shards.prefetching import _is_resident, will_need
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard

PAGES = 4096


@pytest.fixture
def mapped(tmp_path):
    """A file that is mapped, and was dropped from memory where the file system can."""
    path = tmp_path / "rows"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    region = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.close(descriptor)
    yield np.frombuffer(region, dtype=np.uint8)


def starts(mapped, pages):
    return mapped.ctypes.data + np.asarray(pages, dtype=np.int64) * mmap.PAGESIZE


def test_rows_that_are_not_in_memory_come_without_being_read(mapped):
    rows = starts(mapped, range(0, PAGES, 64))
    if all(_is_resident(int(row)) for row in rows):
        pytest.skip("this file system keeps its files in memory")
    assert will_need(rows, 100) > 0
    until = time.monotonic() + 30
    while not all(_is_resident(int(row)) for row in rows):
        assert time.monotonic() < until, "the kernel never read them"
        time.sleep(0.01)
    assert will_need(rows, 100) == 0, "they are in memory: nothing is asked for"


def test_neighbours_are_asked_for_together_and_every_row_whole(mapped, monkeypatch):
    asked = []

    class Kernel:
        @staticmethod
        def madvise(address, size, advice):
            asked.append(((address - mapped.ctypes.data) // mmap.PAGESIZE, size // mmap.PAGESIZE, advice))
            return 0

    monkeypatch.setattr(prefetching, "_libc", Kernel)
    monkeypatch.setattr(prefetching, "_is_resident", lambda address: False)
    assert will_need(starts(mapped, [[70, 10], [11, 300], [10, 12]]) + 5, mmap.PAGESIZE) == 3
    assert asked == [(10, 4, 3), (70, 2, 3), (300, 2, 3)], "a row may lie across two pages"


@pytest.mark.parametrize(("read_around", "is_asked"), [(1, True), (reader.READ_AROUND, False)])
def test_batches_ask_for_all_rows_of_a_large_cache_that_they_will_read(tmp_path, monkeypatch, read_around, is_asked):
    layout = Layout(codebook_size=8, grid=(2, 2), num_variants=3)
    samples = Samples([str(i) for i in range(40)], np.zeros(40, np.int64), np.zeros((40, 3, 2, 2), np.int64))
    write_manifest(tmp_path, layout, [write_shard(tmp_path, 0, layout, samples)], num_classes=1)
    asked = []
    monkeypatch.setattr(reader, "READ_AROUND", read_around)
    monkeypatch.setattr(reader, "will_need", lambda starts, size: asked.append((starts, size)))
    shards = TokenShards(tmp_path)
    batch = next(iter(Batches(shards, batch_size=8, seed=0)))
    assert bool(asked) == is_asked
    if is_asked:
        starts, size = asked[0]
        tokens_end = layout.members["tokens.npy"].data_offset + layout.members["tokens.npy"].array_bytes
        assert starts.shape[1] == 8 and size >= tokens_end
        first = shards.find(batch.samples_B.numpy()) * 512 + shards._bytes.ctypes.data
        assert starts[0].tolist() == first.tolist()
