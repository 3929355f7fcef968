"""Laws of the training stream: one exact order, whoever reads it and wherever he begins."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgit_core.batches.tokens import Batches, Order, ahead, rank_slice
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.order import permute, sample_ids, samples_at
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard

NUM, VARIANTS, BATCH = 45, 3, 8
FIELDS = ("tokens_BL", "labels_B", "indices_B", "samples_B", "variants_B")
GOLDEN = ([1106951, 347118, 1280241, 463372, 1081474, 667174, 236228, 177233], [0, 1, 1, 1, 1, 0, 0, 1])
GOLDEN_TAIL = [9, 1, 8, 5, 6, 7]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """45 samples in shards of 10; sample s, variant v holds the tokens 3 s + v."""
    folder = tmp_path_factory.mktemp("cache")
    layout = Layout(200, (2, 2), VARIANTS)
    indexes = []
    for number, first in enumerate(range(0, NUM, 10)):
        ids = np.arange(first, min(first + 10, NUM))
        tokens = np.broadcast_to((3 * ids[:, None] + np.arange(VARIANTS))[..., None, None], (len(ids), VARIANTS, 2, 2))
        indexes.append(write_shard(folder, number, layout, Samples([f"s{i}" for i in ids], ids % 7, tokens)))
    write_manifest(folder, layout, indexes, num_classes=7)
    return TokenShards(folder)


def read(shards, count, **options):
    """The first batches as one tensor per field."""
    options = {"batch_size": BATCH, "seed": 5, **options}
    found = list(itertools.islice(Batches(shards, **options), count))
    return {name: [getattr(batch, name).clone() for batch in found] for name in FIELDS}


def assert_same(left, right):
    for name in FIELDS:
        assert len(left[name]) == len(right[name])
        assert all(torch.equal(a, b) for a, b in zip(left[name], right[name], strict=True)), name


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_the_order_is_a_permutation(num, key):
    assert np.array_equal(np.sort(permute(np.arange(num), num, key)), np.arange(num))


@settings(max_examples=40, deadline=None)
@given(num=st.integers(1, 300), seed=st.integers(-5, 2**40), start=st.integers(0, 10**7), count=st.integers(0, 700))
def test_any_stretch_of_the_stream_can_be_computed_alone(num, seed, start, count):
    samples, variants = sample_ids(seed, start, count, num, 4)
    pieces = [sample_ids(seed, start + i, 1, num, 4) for i in range(0, count, 97)]
    assert [int(s[0]) for s, _ in pieces] == samples[::97].tolist()
    assert [int(v[0]) for _, v in pieces] == variants[::97].tolist()
    assert not count or (variants.min() >= 0 and variants.max() < 4)


def test_the_order_never_changes_between_releases():
    samples, variants = sample_ids(0, 0, 8, 1281167, 2)
    assert (samples.tolist(), variants.tolist()) == GOLDEN
    assert sample_ids(7, 3 * 10 + 4, 6, 10)[0].tolist() == GOLDEN_TAIL


def test_epochs_and_seeds_differ_and_look_random():
    num = 20000
    first, second, other = (sample_ids(s, e * num, num, num)[0] for s, e in ((0, 0), (0, 1), (1, 0)))
    for left, right in ((first, second), (first, other), (first, np.arange(num))):
        assert (left == right).sum() < 12  # a random permutation has one fixed point on average
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    steps = np.abs(np.diff(first))
    assert abs(steps.mean() / (num / 3) - 1) < 0.02  # as for independent uniform positions


def test_variants_are_drawn_evenly_and_anew_each_epoch():
    num = 30000
    drawn = [sample_ids(1, e * num, num, num, 3) for e in range(2)]
    for _, variants in drawn:
        assert np.all(np.abs(np.bincount(variants, minlength=3) / num - 1 / 3) < 0.015)
    by_sample = [variants[np.argsort(samples)] for samples, variants in drawn]
    assert abs((by_sample[0] == by_sample[1]).mean() - 1 / 3) < 0.015


def test_every_epoch_shows_every_sample_once_with_its_tokens(shards):
    found = read(shards, 6 * NUM // BATCH + 1)
    samples = torch.cat(found["samples_B"])[: 6 * NUM]
    assert torch.equal(samples.view(6, NUM).sort(1).values, torch.arange(NUM).expand(6, -1))
    assert torch.equal(torch.cat(found["indices_B"])[: 6 * NUM], torch.arange(6 * NUM))
    tokens = 3 * torch.cat(found["samples_B"]) + torch.cat(found["variants_B"])
    assert torch.equal(torch.cat(found["tokens_BL"]), tokens[:, None].expand(-1, 4))
    assert torch.equal(torch.cat(found["labels_B"]), torch.cat(found["samples_B"]) % 7)
    assert found["tokens_BL"][0].dtype == found["labels_B"][0].dtype == torch.int64


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 4])
def test_every_rank_with_any_number_of_workers_has_its_share_of_one_order(shards, world_size, num_workers):
    """What each worker of each rank would give, taken in turns as a DataLoader does, without its processes."""
    whole = read(shards, 9)
    for rank in range(world_size):
        low, high = rank_slice(BATCH, rank, world_size)
        order = Batches(shards, batch_size=BATCH, seed=5, rank=rank, world_size=world_size).order
        workers = [iter(order.part(w, num_workers)) for w in range(num_workers)] or [iter(order)]
        for step in range(9):
            indices, samples, variants = next(workers[step % len(workers)])
            assert indices.tolist() == whole["indices_B"][step][low:high].tolist()
            assert samples.tolist() == whole["samples_B"][step][low:high].tolist()
            assert variants.tolist() == whole["variants_B"][step][low:high].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_do_not_change_the_batches(shards, world_size):
    whole = read(shards, 7)
    for rank in range(world_size):
        low, high = rank_slice(BATCH, rank, world_size)
        assert_same(
            read(shards, 7, rank=rank, world_size=world_size), {n: [b[low:high] for b in whole[n]] for n in FIELDS}
        )


def test_worker_processes_are_refused_for_mapped_shards(shards):
    with pytest.raises(ConfigError, match=r"^num_workers: 2 given, .* use 0$"):
        Batches(shards, batch_size=BATCH, seed=5, num_workers=2)


@given(batch=st.integers(1, 100), world=st.integers(1, 100))
def test_ranks_partition_every_batch(batch, world):
    slices = [rank_slice(batch, rank, world) for rank in range(world)]
    assert [i for low, high in slices for i in range(low, high)] == list(range(batch))
    assert max(h - low for low, h in slices) - min(h - low for low, h in slices) <= 1


@pytest.mark.parametrize("options", [{}, {"prefetch": 3}, {"rank": 1, "world_size": 2}])
def test_resuming_anywhere_equals_no_interruption(shards, options):
    whole = read(shards, 14, **options)
    for done in (1, 5, 6, 13):  # within, at and beyond an epoch's end
        resumed = read(shards, 14 - done, start=done * BATCH, **options)
        assert_same(resumed, {name: whole[name][done:] for name in FIELDS})


def test_resuming_at_a_sample_in_mid_batch_and_in_a_far_epoch(shards):
    assert torch.cat(read(shards, 3, start=13)["samples_B"]).tolist() == sample_ids(5, 13, 24, NUM)[0].tolist()
    start = 10**12 + 1
    assert torch.cat(read(shards, 3, start=start)["samples_B"]).tolist() == sample_ids(5, start, 24, NUM)[0].tolist()


def test_a_world_of_another_size_goes_on_with_the_same_stream(shards):
    before = [read(shards, 4, rank=r, world_size=2) for r in range(2)]
    after = [read(shards, 4, rank=r, world_size=3, start=4 * BATCH) for r in range(3)]
    seen = torch.cat([torch.cat(part["indices_B"]) for part in before + after]).sort().values
    assert torch.equal(seen, torch.arange(8 * BATCH))


def test_batches_that_are_kept_are_not_overwritten(shards):
    stream = iter(Batches(shards, batch_size=BATCH, seed=5))
    kept = [next(stream) for _ in range(40)]
    views = [next(stream).tokens_BL[1:] for _ in range(40)]
    expected = read(shards, 80)["tokens_BL"]
    assert all(torch.equal(b.tokens_BL, e) for b, e in zip(kept, expected[:40], strict=True))
    assert all(torch.equal(v, e[1:]) for v, e in zip(views, expected[40:], strict=True))


def test_the_order_alone_shows_what_the_cache_would(shards):
    order = itertools.islice(Order(NUM, VARIANTS, batch_size=BATCH, seed=5, rank=1, world_size=2), 9)
    found = read(shards, 9, rank=1, world_size=2)
    for position, (indices, samples, variants) in enumerate(order):
        assert indices.tolist() == found["indices_B"][position].tolist()
        assert samples.tolist() == found["samples_B"][position].tolist()
        assert variants.tolist() == found["variants_B"][position].tolist()
        assert np.array_equal(samples_at(5, indices, NUM, VARIANTS)[0], samples)


def test_shards_travel_to_other_processes_by_their_folder(shards):
    again = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(again.gather([3, 44], [0, 2])[0], shards.gather([3, 44], [0, 2])[0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 2, "world_size": 3}, "batch_size"),
        ({"start": -1}, "start"),
    ],
)
def test_impossible_combinations_name_the_argument(shards, options, word):
    with pytest.raises(DataError, match=f"^{word}: "):
        Batches(shards, **{"batch_size": BATCH, "seed": 0, **options})


def test_reading_ahead_keeps_order_and_passes_errors_on():
    def failing():
        yield from range(5)
        raise ValueError("in the thread")

    stream = ahead(failing(), 2)
    assert [next(stream) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="in the thread"):
        next(stream)
    assert list(ahead(iter(range(100)), 3)) == list(range(100))
