"""Shards that lie elsewhere: the same samples, an exact order in windows, fetched once, verified."""

import functools
import http.server
import itertools
import pickle
import threading

import numpy as np
import pytest
import torch

from maskgit_core.batches.tokens import Batches
from maskgit_core.errors import DataError
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.remote import RemoteShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard

NUM, BATCH = 46, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """46 samples in shards of 6; sample s, variant v holds the tokens 2 s + v."""
    folder = tmp_path_factory.mktemp("far")
    layout = Layout(128, (2, 2), 2)
    indexes = []
    for number, first in enumerate(range(0, NUM, 6)):
        ids = np.arange(first, min(first + 6, NUM))
        tokens = np.broadcast_to((2 * ids[:, None] + np.arange(2))[..., None, None], (len(ids), 2, 2, 2))
        indexes.append(write_shard(folder, number, layout, Samples([f"s{i}" for i in ids], ids % 5 - 1, tokens)))
    write_manifest(folder, layout, indexes, num_classes=5)
    return folder


@pytest.fixture(scope="module")
def server(source):
    class Handler(http.server.SimpleHTTPRequestHandler):
        asked: list[str] = []  # noqa: RUF012

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(source))
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", Handler.asked
    running.shutdown()
    running.server_close()


def read(shards, count, **options):
    found = list(itertools.islice(Batches(shards, **{"batch_size": BATCH, "seed": 3, **options}), count))
    return [
        torch.cat([getattr(b, name) for b in found]) for name in ("tokens_BL", "labels_B", "samples_B", "variants_B")
    ]


def assert_same(left, right):
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_over_http_every_epoch_shows_every_sample_once_and_fetches_each_shard_once(server, tmp_path):
    url, asked = server
    asked.clear()
    tokens, labels, samples, variants = read(RemoteShards(url, tmp_path, window=3), 3 * NUM // BATCH + 1)
    epochs = samples[: 3 * NUM].view(3, NUM)
    assert torch.equal(epochs.sort(1).values, torch.arange(NUM).expand(3, -1))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(tokens, (2 * samples + variants)[:, None].expand(-1, 4))
    assert torch.equal(labels, samples % 5 - 1)
    assert sorted(asked) == ["/manifest.json"] + [f"/shard-{i:06d}.tar" for i in range(8)]
    read(RemoteShards(url, tmp_path, window=3), 4)
    assert len(asked) == 10  # the manifest again, no shard


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"prefetch": 4}, {"start": 0}])
def test_workers_and_threads_do_not_change_the_order(source, tmp_path, options):
    whole = read(RemoteShards(str(source), tmp_path, window=3), 9)
    assert_same(read(RemoteShards(str(source), tmp_path, window=3), 9, **options), whole)


def test_ranks_partition_and_resuming_equals_no_interruption(source, tmp_path):
    shards = RemoteShards(f"file://{source}", tmp_path, window=2)
    whole = read(shards, 14)
    for done in (1, 5, 6, 13):
        assert_same(read(shards, 14 - done, start=done * BATCH), [part[done * BATCH :] for part in whole])
    ranks = [read(shards, 14, rank=r, world_size=2)[2].view(14, -1) for r in range(2)]
    assert torch.equal(torch.cat(ranks, 1).flatten(), whole[2])


def test_only_a_window_of_shards_is_mixed_and_kept(source, tmp_path):
    size = (source / "shard-000000.tar").stat().st_size
    shards = RemoteShards(str(source), tmp_path, window=2, cache_bytes=3 * size)
    samples = read(shards, NUM // BATCH)[2]
    for first in range(0, 24, 12):
        assert len({int(s) // 6 for s in samples[first : first + 6]}) <= 3
    assert len(list(tmp_path.glob("*.tar"))) <= 3
    one = RemoteShards(str(source), tmp_path / "b", window=100)
    assert len({int(s) // 6 for s in read(one, 1)[2]}) > 3


def test_it_reads_what_the_local_reader_reads_and_travels_to_other_processes(source, tmp_path):
    far, near = RemoteShards(str(source), tmp_path), TokenShards(source)
    indices = np.random.default_rng(0).integers(0, NUM, 60)
    for shards in (far, pickle.loads(pickle.dumps(far))):
        for left, right in zip(shards.gather(indices, indices % 2), near.gather(indices, indices % 2), strict=True):
            assert np.array_equal(left, right)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_shard_that_comes_damaged_is_named_and_not_kept(source, tmp_path, damage):
    copy = tmp_path / "far"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    victim = copy / "shard-000000.tar"
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-600] if damage == "cut" else data[:700] + b"!" + data[701:])
    shards = RemoteShards(str(copy), tmp_path / "near")
    with pytest.raises(DataError) as caught:
        shards.gather([0])
    assert str(caught.value).startswith(f"{victim}: ") and "\n" not in str(caught.value)
    assert not list((tmp_path / "near").rglob("*"))


def test_addresses_that_cannot_be_read_say_so(server, tmp_path):
    with pytest.raises(DataError, match="pipe: is not a way to fetch shards"):
        RemoteShards("pipe://echo", tmp_path)
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: cannot be fetched"):
        RemoteShards(str(tmp_path / "nowhere"), tmp_path)
