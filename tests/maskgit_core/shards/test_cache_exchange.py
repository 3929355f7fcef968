"""Caches go to npz folders and hub repositories and come back the same; nothing half-sent ever looks whole."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskgit_core.errors import DataError
from maskgit_core.shards.checks import problems
from maskgit_core.shards.format import Layout
from maskgit_core.shards.hub import pull, push
from maskgit_core.shards.npz import export_npz, import_npz
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard


def make(folder: Path, layout: Layout, count: int = 23, labelled: bool = True) -> TokenShards:
    rng = np.random.default_rng(0)
    indexes = []
    for number, first in enumerate(range(0, count, 8)):
        n = min(8, count - first)
        latents = rng.normal(size=(n, layout.num_variants, *layout.latents)) if layout.latents else None
        tokens = rng.integers(0, layout.codebook_size, (n, layout.num_variants, *layout.grid))
        labels = rng.integers(0, 6, n) if labelled else np.full(n, -1)
        keys = [f"{first + i}" for i in range(n)]
        latents = None if latents is None else latents.astype(np.float16)
        indexes.append(write_shard(folder, number, layout, Samples(keys, labels, tokens, None, latents)))
    variants = ["original", "flip"][: layout.num_variants]
    write_manifest(folder, layout, indexes, num_classes=6 if labelled else None, variants=variants)
    return TokenShards(folder)


# -- npz ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "layout", [Layout(1024, (4, 4), 2), Layout(100, (3, 5), 1), Layout(300, (2, 2), 2, latents=(3, 2, 2))]
)
def test_npz_and_back_are_the_same_samples(tmp_path, layout, labelled):
    ours = make(tmp_path / "a", layout, labelled=labelled)
    assert export_npz(tmp_path / "a", tmp_path / "npz") == 23
    count = import_npz(
        tmp_path / "npz", tmp_path / "b", codebook_size=layout.codebook_size, grid=layout.grid, shard_size=8
    )
    back = TokenShards(tmp_path / "b")
    assert count == len(back) == 23 and list(problems(tmp_path / "b")) == []
    assert (back.num_classes is None) == (not labelled)
    for variant in range(layout.num_variants):
        for left, right in zip(ours.gather(range(23), variant), back.gather(range(23), variant), strict=True):
            assert np.array_equal(left, right)
    assert not layout.latents or np.array_equal(ours.latents(range(23)), back.latents(range(23)))


def test_exported_files_are_what_the_original_reads(tmp_path):
    shards = make(tmp_path / "a", Layout(1024, (4, 4), 2))
    export_npz(tmp_path / "a", tmp_path / "npz")
    assert {p.name for p in (tmp_path / "npz").iterdir()} == {f"{i}.npz" for i in range(23)}
    with np.load(tmp_path / "npz" / "11.npz", allow_pickle=False) as data:
        assert sorted(data.files) == ["idx", "idx_flip", "y"]
        assert data["idx"].shape == (16,) and data["idx"].dtype == np.int64
        assert np.array_equal(data["idx_flip"], shards.gather([11], 1)[0][0])


def test_import_sorts_by_number_and_goes_on_where_it_stopped(tmp_path):
    make(tmp_path / "a", Layout(64, (2, 2), 1))
    export_npz(tmp_path / "a", tmp_path / "npz")
    import_npz(tmp_path / "npz", tmp_path / "b", codebook_size=64, shard_size=8)
    keys = [TokenShards(tmp_path / "b").key(i) for i in range(23)]
    assert keys == [str(i) for i in range(23)]
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    kept = (tmp_path / "b" / "shard-000000.tar").stat().st_mtime_ns
    for name in ("shard-000001.tar", "shard-000001.json", "manifest.json"):
        (tmp_path / "b" / name).unlink()
    import_npz(tmp_path / "npz", tmp_path / "b", codebook_size=64, shard_size=8)
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == before
    assert (tmp_path / "b" / "shard-000000.tar").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: p.write_bytes(b"PK not a zip"), "cannot be read"),
        (lambda p: np.savez(p, idx=np.array([{"a": 1}], dtype=object)), "pickled"),
        (lambda p: np.savez(p, idx=np.zeros(9, int), idx_flip=np.zeros(9, int), y=1), "does not hold what"),
        (lambda p: np.savez(p, idx=np.zeros(4, int), y=1), "does not hold what"),
        (lambda p: np.savez(p, idx=np.full(4, 64), idx_flip=np.zeros(4, int), y=1), "--codebook-size"),
    ],
)
def test_a_bad_npz_file_is_named_and_nothing_counts_as_done(tmp_path, write, words):
    make(tmp_path / "a", Layout(64, (2, 2), 2))
    export_npz(tmp_path / "a", tmp_path / "npz")
    write(tmp_path / "npz" / "17.npz")
    with pytest.raises(DataError) as caught:
        import_npz(tmp_path / "npz", tmp_path / "b", codebook_size=64, shard_size=8)
    assert "17.npz" in str(caught.value).split(": ")[0] and words in str(caught.value)
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_exports_that_would_lose_something_are_refused(tmp_path):
    make(tmp_path / "a", Layout(64, (2, 2), 3))
    with pytest.raises(DataError, match="the npz form holds"):
        export_npz(tmp_path / "a", tmp_path / "npz")
    make(tmp_path / "c", Layout(64, (2, 2), 2))
    export_npz(tmp_path / "c", tmp_path / "npz2")
    with pytest.raises(DataError, match="holds npz files already"):
        export_npz(tmp_path / "c", tmp_path / "npz2")


# -- hub ------------------------------------------------------------------------------------------------------------
class FolderHub:
    """Stands in for the hub's client: a folder, with the four calls that are used, under the same signatures."""

    def __init__(self, root: Path) -> None:
        self.root, self.log, self.fail_at = root, [], None

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.log.append(("create", private))

    def get_paths_info(self, repo_id, paths, *, repo_type):
        found = [p for p in paths if (self.root / repo_id / p).is_file()]
        digest = {p: hashlib.sha256((self.root / repo_id / p).read_bytes()).hexdigest() for p in found}
        return [SimpleNamespace(path=p, lfs=SimpleNamespace(sha256=digest[p])) for p in found]

    def upload_folder(self, *, repo_id, repo_type, folder_path, path_in_repo, allow_patterns, commit_message):
        for name in allow_patterns:
            if len(self.log) == self.fail_at:
                raise ConnectionError("the line\nbroke")
            target = self.root / repo_id / (path_in_repo or "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, target)
            self.log.append(("upload", str(target)))

    def snapshot_download(self, repo_id, *, repo_type, revision, local_dir, allow_patterns):
        for pattern in allow_patterns:
            for source in (self.root / repo_id).glob(pattern):
                target = Path(local_dir) / source.relative_to(self.root / repo_id)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        return str(local_dir)


@pytest.fixture
def hub(tmp_path):
    make(tmp_path / "cache", Layout(1024, (4, 4), 2))
    return FolderHub(tmp_path / "hub")


def shards_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".tar" or p.name == "manifest.json"}


@pytest.mark.parametrize("prefix", ["", "imagenet/f16"])
def test_pushed_and_pulled_is_the_same_cache_and_the_manifest_goes_last(tmp_path, hub, prefix):
    assert push(tmp_path / "cache", "lab/tokens", hub, prefix=prefix) == 3
    assert hub.log[0] == ("create", True) and hub.log[-1][1].endswith("manifest.json")
    assert pull("lab/tokens", tmp_path / "pulled", hub, prefix=prefix) == 3
    assert shards_of(tmp_path / "pulled") == shards_of(tmp_path / "cache")
    assert list(problems(tmp_path / "pulled")) == [] and not list((tmp_path / "pulled").glob(".*"))
    assert push(tmp_path / "cache", "lab/tokens", hub, prefix=prefix) == 0  # all there already
    (tmp_path / "pulled" / "shard-000001.tar").write_bytes(b"torn")
    assert pull("lab/tokens", tmp_path / "pulled", hub, prefix=prefix) == 1
    assert list(problems(tmp_path / "pulled")) == []


def test_a_broken_line_leaves_no_manifest_and_the_rest_is_sent_later(tmp_path, hub):
    hub.fail_at = 2
    with pytest.raises(DataError) as caught:
        push(tmp_path / "cache", "lab/tokens", hub)
    assert str(caught.value).startswith("lab/tokens: the hub refused") and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^lab/tokens/manifest\.json: "):
        pull("lab/tokens", tmp_path / "pulled", hub)
    hub.fail_at = None
    assert push(tmp_path / "cache", "lab/tokens", hub) == 2


def test_a_damaged_cache_is_not_sent(tmp_path, hub):
    path = tmp_path / "cache" / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"shard-000001\.tar"):
        push(tmp_path / "cache", "lab/tokens", hub)
    assert hub.log == []


def test_what_was_changed_on_the_way_is_refused_and_not_kept(tmp_path, hub):
    push(tmp_path / "cache", "lab/tokens", hub)
    path = hub.root / "lab/tokens/shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"^lab/tokens/shard-000002\.tar: sha256"):
        pull("lab/tokens", tmp_path / "pulled", hub)
    assert not (tmp_path / "pulled" / "manifest.json").exists()
    assert not (tmp_path / "pulled" / "shard-000002.tar").exists()


def test_a_hostile_manifest_writes_nowhere_else(tmp_path, hub):
    push(tmp_path / "cache", "lab/tokens", hub)
    path = hub.root / "lab/tokens/manifest.json"
    path.write_text(path.read_text().replace('"shard-000001.tar"', '"../../escaped.tar"'))
    with pytest.raises(DataError, match="not a plain file name"):
        pull("lab/tokens", tmp_path / "pulled", hub)
    assert not list(tmp_path.rglob("escaped*"))
