"""Laws of token shards: they hold what was put in, any tar reader reads them, and every damage is told in one line."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskgit_core.errors import ArtifactError, DataError
from maskgit_core.files import publish
from maskgit_core.shards.checks import describe, problems
from maskgit_core.shards.format import Layout, decode_key, encode_key, npy_header, token_dtype
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import (
    Samples,
    build_shard,
    index_shard,
    read_index,
    shard_name,
    write_manifest,
    write_shard,
)

KEYS = st.lists(
    st.text(min_size=1, max_size=130).filter(lambda t: t.isprintable()), min_size=1, max_size=7, unique=True
)


def content(layout: Layout, count: int, seed: int = 0, num_classes: int = 10, keys: list[str] | None = None) -> Samples:
    rng = np.random.default_rng(seed)
    shape = (count, layout.num_variants)
    boxes = rng.integers(0, 300, (*shape, 5), dtype=np.int32) if layout.boxes else None
    latents = rng.normal(size=(*shape, *layout.latents)).astype(np.float16) if layout.latents else None
    return Samples(
        keys or [f"c{seed}/image_{i}.JPEG" for i in range(count)],
        rng.integers(-1, num_classes, count),
        rng.integers(0, layout.codebook_size, (*shape, *layout.grid)),
        boxes,
        latents,
    )


def make(folder: Path, layout: Layout, counts: list[int], num_classes: int = 10) -> list[Samples]:
    parts = [content(layout, count, seed, num_classes) for seed, count in enumerate(counts)]
    indexes = [write_shard(folder, number, layout, part) for number, part in enumerate(parts)]
    write_manifest(folder, layout, indexes, num_classes=num_classes)
    return parts


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=KEYS,
    codebook=st.sampled_from([2, 256, 257, 65536, 65537]),
    grid=st.sampled_from([(1, 1), (7, 7), (3, 5), (16, 16)]),
    variants=st.integers(1, 4),
    boxes=st.booleans(),
    latents=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, keys, codebook, grid, variants, boxes, latents):
    folder = tmp_path_factory.mktemp("shards")
    layout = Layout(codebook, grid, variants, boxes, (4, *grid) if latents else None)
    samples = content(layout, len(keys), keys=keys)
    write_manifest(folder, layout, [write_shard(folder, 0, layout, samples)], num_classes=10)
    shards = TokenShards(folder)
    for variant in range(variants):
        tokens, labels = shards.gather(np.arange(len(keys)), variant)
        assert np.array_equal(tokens, samples.tokens[:, variant].reshape(len(keys), -1))
        assert np.array_equal(labels, samples.labels)
    assert [shards.key(i) for i in range(len(keys))] == keys
    assert not boxes or np.array_equal(shards.boxes(range(len(keys))), samples.boxes)
    assert not latents or np.array_equal(shards.latents(range(len(keys))), samples.latents)
    assert list(problems(folder)) == []
    assert TokenShards(folder).layout == layout


def test_gather_crosses_shards_in_any_order(tmp_path):
    layout = Layout(1024, (4, 4), 2)
    parts = make(tmp_path, layout, [9, 9, 9, 2])
    tokens = np.concatenate([p.tokens for p in parts])
    labels = np.concatenate([p.labels for p in parts])
    shards = TokenShards(tmp_path)
    rng = np.random.default_rng(0)
    indices, variants = rng.integers(0, 29, 200), rng.integers(0, 2, 200)
    out = np.full((200, 16), -5, dtype=np.int64)
    got, got_labels = shards.gather(indices, variants, out=out)
    assert got is out and np.array_equal(out, tokens[indices, variants].reshape(200, 16))
    assert np.array_equal(got_labels, labels[indices]) and np.array_equal(shards.labels(), labels)
    for bad in ([29], [-1]):
        with pytest.raises(IndexError):
            shards.gather(bad)


def test_webdataset_and_tarfile_read_the_same_samples(tmp_path):
    import webdataset

    layout = Layout(16384, (16, 16), 2, boxes=True)
    parts = make(tmp_path, layout, [6, 3])
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(read) == 9
    for sample, (part, i) in zip(read, [(p, i) for p in parts for i in range(len(p.keys))], strict=True):
        assert np.array_equal(sample["tokens.npy"], part.tokens[i]) and sample["tokens.npy"].dtype == np.uint16
        assert sample["cls"] == part.labels[i]
        assert np.array_equal(sample["boxes.npy"], part.boxes[i])
        assert decode_key(sample["__key__"], {}) == part.keys[i]
    with tarfile.open(urls[0]) as tar:
        members = tar.getmembers()
        assert len(members) == 18 and {m.mtime for m in members} == {0}
        loaded = np.load(io.BytesIO(tar.extractfile(members[1]).read()), allow_pickle=False)
        assert np.array_equal(loaded, parts[0].tokens[0])


def test_a_sample_of_two_variants_takes_3100_bytes_at_most(tmp_path):
    layout = Layout(16384, (16, 16), 2)
    make(tmp_path, layout, [512])
    assert describe(tmp_path)["bytes_per_sample"] <= 3100


@given(st.text(min_size=1, max_size=200))
def test_keys_become_names_that_webdataset_does_not_split(key):
    name = encode_key(key)
    assert name.isascii() and len(name) <= 84 and "." not in name
    assert not name.startswith(("/", "__")) and not name.endswith("/")
    assert decode_key(name, {name: key} if "~" in name else {}) == key


@pytest.mark.parametrize(("codebook", "name"), [(256, "|u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_ids_take_the_smallest_type(codebook, name):
    assert token_dtype(codebook).str == name


@pytest.mark.parametrize("shape", [(), (3,), (2, 16, 16), (2, 4, 32, 32)])
def test_npy_heads_are_numpys(tmp_path, shape):
    array = np.arange(int(np.prod(shape)), dtype=np.uint16).reshape(shape)
    (tmp_path / "a.npy").write_bytes(npy_header(array.dtype, shape) + array.tobytes())
    assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), array)


def test_the_first_writer_wins_and_the_index_follows_the_bytes(tmp_path):
    layout = Layout(64, (2, 2))
    first = write_shard(tmp_path, 0, layout, content(layout, 5, seed=1))
    before = (tmp_path / shard_name(0)).read_bytes()
    assert write_shard(tmp_path, 0, layout, content(layout, 5, seed=2)) == first  # another GPU's near-ties, say
    assert (tmp_path / shard_name(0)).read_bytes() == before
    (tmp_path / "shard-000000.json").unlink()
    assert read_index(tmp_path, 0) is None
    assert index_shard(tmp_path / shard_name(0), layout) == first
    assert read_index(tmp_path, 0) == first


def test_the_same_samples_give_the_same_bytes():
    layout = Layout(1000, (3, 3), 2)
    assert b"".join(build_shard(layout, content(layout, 8))) == b"".join(build_shard(layout, content(layout, 8)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.tokens.__setitem__((2, 0, 0, 0), 64), "do not lie in [0, 64)"),
        (lambda s: s.tokens.__setitem__((2, 0, 0, 0), -1), "do not lie in [0, 64)"),
        (lambda s: s.keys.__setitem__(1, s.keys[0]), "occurs twice"),
        (lambda s: s.keys.__setitem__(1, ""), "empty key"),
    ],
)
def test_bad_samples_are_refused_before_anything_is_written(tmp_path, change, words):
    layout = Layout(64, (2, 2))
    samples = content(layout, 4)
    change(samples)
    with pytest.raises(DataError) as caught:
        write_shard(tmp_path, 0, layout, samples)
    assert words in str(caught.value) and list(tmp_path.iterdir()) == []


def _flip(place):
    def damage(folder: Path) -> None:
        path = folder / shard_name(1)
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)

    return damage


def _edit(**changes):
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _edit_shard(**changes):
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["shards"][1].update(changes)
        path.write_text(json.dumps(manifest))

    return damage


def _cut(folder: Path) -> None:
    path = folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1700])


STRIDE = Layout(1000, (4, 4), 2).stride
DAMAGES = {
    "torn": (_cut, "shard-000001.tar", "torn"),
    "missing": (lambda f: (f / shard_name(1)).unlink(), "shard-000001.tar", "missing"),
    "flipped in a header": (_flip(STRIDE + 150), "shard-000001.tar", "sha256"),
    "flipped in a name": (_flip(STRIDE + 1), "shard-000001.tar", "sha256"),
    "flipped in tokens": (_flip(STRIDE + 1536 + 128 + 8), "shard-000001.tar", "sha256"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json", "no manifest"),
    "not JSON": (lambda f: (f / "manifest.json").write_text('{"format": '), "manifest.json", "JSON"),
    "not ours": (_edit(format="zip"), "manifest.json", "not a manifest of token shards"),
    "from the future": (_edit(format_version=9), "manifest.json", "format_version"),
    "wrong total": (_edit(num_samples=11), "manifest.json", "num_samples"),
    "wrong classes": (_edit(class_counts={"3": 14}), "manifest.json", "class_counts"),
    "smaller codebook": (_edit(codebook_size=300), "shard-000000.tar", "out of range"),
    "fewer classes": (_edit(num_classes=2), "shard-000000.tar", "labels"),
    "climbing name": (_edit_shard(name="../other.tar"), "manifest.json", "plain file name"),
    "wrong count": (_edit_shard(count=900), "manifest.json", "cannot hold"),
    "wrong sha256": (_edit_shard(sha256="0" * 64), "shard-000001.tar", "sha256"),
    "lost entry": (_edit_shard(name=None), "manifest.json", "wrong form"),
    "one too many": (lambda f: (f / shard_name(7)).write_bytes(b"x"), "shard-000007.tar", "not listed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_one_line_that_names_the_file(tmp_path, name):
    damage, file, words = DAMAGES[name]
    make(tmp_path, Layout(1000, (4, 4), 2), [5, 5, 4])
    assert list(problems(tmp_path)) == []
    damage(tmp_path)
    lines = list(problems(tmp_path))
    assert lines and all("\n" not in line for line in lines)
    assert file in lines[0].split(":")[0] and words in lines[0], lines


@pytest.mark.parametrize(
    "name", ["torn", "missing", "no manifest", "not JSON", "wrong total", "climbing name", "wrong count"]
)
def test_a_damaged_cache_does_not_open(tmp_path, name):
    damage, file, words = DAMAGES[name]
    make(tmp_path, Layout(1000, (4, 4), 2), [5, 5, 4])
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        TokenShards(tmp_path)
    assert file in str(caught.value).split(":")[0] and words in str(caught.value)


def test_a_header_damaged_together_with_its_checksum_is_found(tmp_path):
    layout = Layout(1000, (4, 4), 2)
    make(tmp_path, layout, [5])
    path = tmp_path / shard_name(0)
    data = bytearray(path.read_bytes())
    data[layout.stride + 100] ^= 1
    path.write_bytes(data)
    (tmp_path / "shard-000000.json").unlink()
    index = index_shard(path, layout)
    write_manifest(tmp_path, layout, [index], num_classes=10)
    assert [line for line in problems(tmp_path) if "sample 1" in line and "shard-000000.tar" in line]


@pytest.mark.parametrize(("number", "words"), [(28, "full"), (30, "read-only"), (13, "permission")])
def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(tmp_path, number, words):
    def refuse(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(number, "refused")

    with pytest.raises(ArtifactError) as caught:
        publish(tmp_path / "shard-000000.tar", refuse)
    assert words in str(caught.value) and "shard-000000.tar" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
