"""Identity: what changes a fingerprint, and what must not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import LAB

from experiments.planning.pipeline import build
from experiments.store.content_digests import ContentDigests
from experiments.store.typed_json import canonical


def fingerprints(*overrides: str, experiment: str = "chain", store: Path | None = None) -> dict[str, str]:
    place = store or Path("/nonexistent/store")
    graph = build([f"experiment={experiment}", f"paths.store={place}", *overrides], [LAB])
    return {node.name: fingerprint for fingerprint, node in graph.nodes.items()}


def test_execution_paths_and_resources_change_nothing() -> None:
    base = fingerprints()
    assert fingerprints("numbers.pause_s=9", "resources.numbers.ranks=4", "launcher=inline") == base
    assert fingerprints(store=Path("/another/store")) == base


def test_a_value_changes_its_step_and_what_depends_on_it() -> None:
    base, changed = fingerprints(), fingerprints("total.weight=2")
    assert base["numbers"] == changed["numbers"] and base["total"] != changed["total"]
    upstream = fingerprints("numbers.count=6")
    assert upstream["numbers"] != base["numbers"] and upstream["total"] != base["total"]


def test_equal_values_written_differently_are_equal() -> None:
    assert fingerprints("numbers.scale=2") == fingerprints("numbers.scale=2.0") == fingerprints("numbers.scale=20e-1")


def test_writing_the_default_out_changes_nothing() -> None:
    assert fingerprints("numbers.count=5", "numbers.scale=1") == fingerprints()


def test_a_new_option_at_its_neutral_value_readdresses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stage before and after an option was added."""
    import importlib

    from experiments.config.schema import signatures

    old = (LAB.parent / "stages" / "numbers.py").read_text()
    assert "offset" in old
    without = old.replace("    offset: Annotated[int, Neutral(0)] = 0,\n", "")
    before = fingerprints()
    assert fingerprints("numbers.offset=1")["numbers"] != before["numbers"]
    copy = tmp_path / "toylab"
    shutil.copytree(LAB.parent, copy)
    (copy / "stages" / "numbers.py").write_text(without)
    monkeypatch.setattr(signatures, "source_file", lambda module: _in(copy, module) or _original(module))
    global _original
    signatures._read.cache_clear()
    signatures._tree.cache_clear()
    try:
        assert fingerprints() == before
    finally:
        signatures._read.cache_clear()
        signatures._tree.cache_clear()
        importlib.invalidate_caches()


def _original(module: str) -> Path | None:
    import sys

    path = Path(LAB.parent.parent, *module.split(".")).with_suffix(".py")
    if path.is_file():
        return path
    from importlib.util import find_spec

    package, _, rest = module.partition(".")
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(place, *rest.split(".")).with_suffix(".py")
        if candidate.is_file():
            return candidate
    assert sys
    return None


def _in(copy: Path, module: str) -> Path | None:
    if not module.startswith("toylab."):
        return None
    path = Path(copy.parent, *module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def test_content_counts_and_its_place_does_not(tmp_path: Path) -> None:
    first = tmp_path / "a" / "number.txt"
    first.parent.mkdir()
    first.write_text("3")
    store = tmp_path / "store"
    before = fingerprints(f"numbers.source={first}", store=store)
    moved = tmp_path / "b" / "renamed.txt"
    moved.parent.mkdir()
    shutil.move(first, moved)
    assert fingerprints(f"numbers.source={moved}", store=store) == before
    moved.write_text("4")
    assert fingerprints(f"numbers.source={moved}", store=store)["numbers"] != before["numbers"]


def test_replacing_one_file_of_a_folder_changes_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "class"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.bin").write_bytes(bytes([i]) * 100)
    before = ContentDigests(tmp_path / "store")("d", str(tmp_path / "data"), "content")
    assert ContentDigests(tmp_path / "store")("d", str(tmp_path / "data"), "content") == before
    (folder / "1.bin").write_bytes(b"x" * 100)
    after = ContentDigests(tmp_path / "store")("d", str(tmp_path / "data"), "content")
    assert after != before
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert ContentDigests(tmp_path / "store")("d", str(tmp_path / "elsewhere"), "content") == after


def test_values_without_canonical_form_are_refused() -> None:
    values: list[Any] = [float("nan"), float("inf"), {1, 2}, object()]
    for value in values:
        with pytest.raises((TypeError, ValueError)):
            canonical({"x": value})


def test_fan_in_does_not_depend_on_the_order_of_points() -> None:
    one = fingerprints("sweep.grid={numbers.scale: [1.0, 2.0, 3.0]}", experiment="fanin")
    other = fingerprints("sweep.grid={numbers.scale: [3.0, 1.0, 2.0]}", experiment="fanin")
    assert one["all"] == other["all"]


def test_shared_steps_exist_once() -> None:
    found = fingerprints("total.weight=1,2,3")
    assert sorted(name.partition("[")[0] for name in found) == ["numbers", "total", "total", "total"]
