"""Digests name content: replacing a picture changes them, moving a folder does not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from maskgit_core import content
from maskgit_core.content import describe, digest, resolve
from maskgit_core.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 7)
    return root


def test_moving_changes_nothing_and_replacing_one_file_does(folder: Path, tmp_path: Path) -> None:
    before = digest(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert digest(moved) == before
    (moved / "cat/2.png").write_bytes(b"another")
    assert digest(moved) != before


def test_renaming_a_file_or_a_class_counts(folder: Path) -> None:
    before = digest(folder)
    (folder / "cat/1.png").rename(folder / "cat/9.png")
    after = digest(folder)
    assert after != before
    (folder / "cat").rename(folder / "cow")
    assert digest(folder) not in (before, after)


def test_hidden_files_do_not_count(folder: Path) -> None:
    before = digest(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    assert digest(folder) == before


def test_the_cache_is_trusted_only_while_size_and_times_are_the_same(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = digest(folder, cache)
    tables = list(cache.iterdir())
    assert len(tables) == 1
    stored = json.loads(tables[0].read_text())
    assert set(stored["files"]) == {"cat/1.png", "cat/2.png", "dog/1.png"}

    # A file of the same size whose mtime was set back is still noticed (its ctime changed).
    target = folder / "dog/1.png"
    stat = target.stat()
    target.write_bytes(b"x" * stat.st_size)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(folder, cache) != before


def test_a_known_file_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    before = digest(folder, cache)
    monkeypatch.setattr(content, "_hash_file", lambda *_: pytest.fail("a file was read"))
    assert digest(folder, cache) == before


def test_a_damaged_cache_only_costs_time(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = digest(folder, cache)
    next(cache.iterdir()).write_text("{")
    assert digest(folder, cache) == before


def test_packed_and_unpacked_idx_files_agree(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a", tmp_path / "b"
    plain.mkdir()
    packed.mkdir()
    (plain / "train-images-idx3-ubyte").write_bytes(b"pixels" * 99)
    for level, name in ((1, "train-images-idx3-ubyte.gz"),):
        (packed / name).write_bytes(gzip.compress(b"pixels" * 99, level))
    assert digest(plain) == digest(packed)


def test_large_folders_are_sampled_and_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = describe(folder)
    assert full.note is None
    monkeypatch.setattr(content, "FULL_DIGEST_BYTES", 10)
    sampled = describe(folder)
    assert sampled.note is not None and sampled.note.startswith("sampled: 3 names and sizes")
    assert sampled.sha256 != full.sha256
    (folder / "cat/1.png").write_bytes(b"one byte more" * 7)
    assert describe(folder).sha256 != sampled.sha256


def test_a_loop_of_links_ends(folder: Path) -> None:
    before = digest(folder)
    (folder / "cat/up").symlink_to(folder)
    assert digest(folder) == before


def test_resolve_takes_the_first_that_exists_and_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    assert resolve([str(tmp_path / "no"), str(folder)]) == folder
    assert resolve("bundled:fashion_mnist_subset").is_dir()
    for wrong in (str(tmp_path / "no"), [str(tmp_path / "no")], "bundled:nothing", "bundled:../datasets", []):
        with pytest.raises(DataError) as caught:
            resolve(wrong)
        assert len(str(caught.value).splitlines()) == 1


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "no"):
        with pytest.raises(DataError, match="put the data there"):
            digest(path)


def test_the_copy_of_a_folder_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(folder)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.txt").write_text("x")
    with open(os.fsencode(tmp_path / "data") + b"/\xff\xfe.txt", "w"):
        pass
    with pytest.raises(DataError, match=r"a file's name is not UTF-8 text \('\\udcff\\udcfe.txt'\); rename it"):
        describe(tmp_path / "data", tmp_path / "cache")


BAD_TABLES = ("5", "[]", "{}", "null", '{"version": 2, "files": null}', '{"version": 2, "files": {"a": 5}}', "[" * 9999)


@pytest.mark.parametrize("stored", BAD_TABLES)
def test_a_damaged_table_of_digests_is_read_again(tmp_path, stored):
    (tmp_path / "a.txt").write_text("content")
    right = digest(tmp_path / "a.txt", tmp_path / "cache")
    (table,) = (tmp_path / "cache").glob("*.json")
    whole = table.read_text()
    for text in (stored, whole.replace(right[:4], "0000"), whole.replace('"files"', '"filed"')):
        table.write_text(text)
        assert digest(tmp_path / "a.txt", tmp_path / "cache") == right
