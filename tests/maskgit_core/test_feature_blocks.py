"""Blocks of features: read one ahead, computed in order, only what is missing; always in fp32."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from maskgit_core.devices import products
from maskgit_core.errors import DataError
from maskgit_core.evaluation.blocks import BLOCK, Blocks
from maskgit_core.evaluation.features import outputs_of


def publish(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


def blocks(folder: Path, **options):
    return Blocks(folder, "set", 3 * BLOCK + 5, publish, **options)


def test_reading_is_one_ahead_in_another_thread_and_results_are_in_order(tmp_path):
    readers, second_is_read = [], threading.Event()

    def read(items):
        readers.append(threading.current_thread())
        if items.start == BLOCK:
            second_is_read.set()
        return torch.arange(items.start, items.stop)

    def work(rows):
        assert second_is_read.wait(30), "the second block is read while the first is computed"
        return {"features": rows[:, None].float()}

    made = blocks(tmp_path)
    assert list(made.compute(work, read)) == [BLOCK, BLOCK, BLOCK, 5]
    assert threading.current_thread() not in readers and len(readers) == 4
    found = torch.cat([block["features"] for block in made.read()])
    assert found.flatten().tolist() == list(range(made.count))


def test_only_missing_blocks_are_read_and_a_stop_leaves_the_rest(tmp_path):
    def work(items):
        return {"features": torch.full((len(items), 1), float(items.start))}

    stopped = blocks(tmp_path, should_stop=lambda: stopped.path(1).is_file())
    assert list(stopped.compute(work, lambda items: items)) == [BLOCK, BLOCK]
    assert stopped.missing() == [2, 3]
    asked = []
    assert len(list(blocks(tmp_path).compute(work, lambda items: asked.append(items.start) or items))) == 4
    assert asked == [2 * BLOCK, 3 * BLOCK]


def test_a_picture_that_cannot_be_read_ends_the_pass_with_its_own_error(tmp_path):
    def read(items):
        if items.start:
            raise DataError("0129.png: cannot be read")
        return items

    with pytest.raises(DataError, match=r"0129\.png"):
        list(blocks(tmp_path).compute(lambda items: {"features": torch.zeros(len(items), 1)}, read))
    assert blocks(tmp_path).missing() == [1, 2, 3]


def test_features_are_taken_in_fp32_whatever_the_process_allows():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return torch.nn.functional.linear(images.flatten(1).float(), torch.ones(2, 12))

    with products("tf32", "cpu"), torch.autocast("cpu", torch.bfloat16):
        found = outputs_of(Network(), torch.full((1, 3, 2, 2), 101, dtype=torch.uint8))
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32, "as they were"
    assert seen == [(False, False)]
    assert found["features"].tolist() == [[1212.0, 1212.0]], "bfloat16 would round to 1216"


@pytest.mark.parametrize("world_size", [1, 3])
def test_many_blocks_share_files_and_any_number_of_ranks_writes_the_same(tmp_path, world_size):
    count = (32 * 3 + 7) * BLOCK + 5  # three blocks a file, the last file holds two

    def work(items):
        return {"features": torch.tensor(items)[:, None].float(), "sums": torch.tensor([float(items.start)])}

    for rank in range(world_size):
        stops = [0]

        def later(stops=stops, rank=rank):
            stops[0] += 1
            return rank == 0 and stops[0] == 5  # in the middle of the second file

        own = Blocks(tmp_path, "set", count, publish, rank=rank, world_size=world_size, should_stop=later)
        done = sum(own.compute(work, lambda items: items))
        assert rank or (done == 4 * BLOCK and own.path(0).is_file() and len(own.missing()) == own.num_files - 1)
        own.should_stop = lambda: False
        list(own.compute(work, lambda items: items))
    assert not own.missing() and len(list(tmp_path.iterdir())) == own.num_files == 35
    read = list(own.read())
    assert [int(block["sums"]) for block in read] == [number * BLOCK for number in range(own.num_blocks)]
    assert torch.cat([block["features"] for block in own.read("features")]).flatten().tolist() == list(range(count))
    own.remove()
    assert not list(tmp_path.iterdir())
