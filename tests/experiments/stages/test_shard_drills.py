"""Token caches that come to harm, through the commands: one line naming the file, and nothing half-made counts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Maskgit, mounted
from PIL import Image

from experiments.cli import main
from maskgit_core.shards.format import Layout
from maskgit_core.shards.writer import Samples, write_manifest, write_shard

EXPERIMENT = """\
# @package _global_
defaults: [/dataset: image_folder, /tokenizer: vq, _self_]
description: a folder of pictures, cached
dataset: {image_size: 16, crop: none}
pipeline:
  steps:
    train_tokenizer: {stage: train_tokenizer}
    cache_tokens: {stage: cache_tokens, needs: [train_tokenizer]}
train_tokenizer: {num_train_steps: 2, batch_size: 4, num_held_out: 2}
cache_tokens: {shard_size: 4, num_workers: 1}
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two shards of five samples."""
    folder = tmp_path / "cache"
    layout, rng, indexes = Layout(50, (2, 2), 2), np.random.default_rng(0), []
    for number in range(2):
        tokens = rng.integers(0, 50, (5, 2, 2, 2))
        names = [f"{number}-{i}" for i in range(5)]
        indexes.append(write_shard(folder, number, layout, Samples(names, np.arange(5), tokens)))
    write_manifest(folder, layout, indexes, num_classes=5)
    return folder


def harm(cache: Path, damage: str) -> Path:
    """Does it; returns the file that must be named."""
    shard, manifest = cache / "shard-000001.tar", cache / "manifest.json"
    data = bytearray(shard.read_bytes())
    if damage == "torn":
        shard.write_bytes(data[:-700])
    elif damage == "bit":
        data[1600] ^= 4
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    else:
        about = json.loads(manifest.read_text())
        if damage == "count":
            about["num_samples"] += 1
        manifest.write_text(json.dumps(about) if damage == "count" else manifest.read_text()[:-20])
        return manifest
    return shard


@pytest.mark.parametrize("damage", ["torn", "bit", "missing", "count", "cut manifest"])
def test_verify_names_the_file_in_one_line(damage: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "verify", str(cache)]) == 0
    capsys.readouterr()
    named = harm(cache, damage)
    assert main(["shards", "verify", str(cache)]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(named) in said[0], said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; needs the right to mount."""
    yield from mounted(tmp_path / "disk", "64m")


@pytest.mark.slow
def test_a_cache_survives_a_bad_picture_a_full_disk_and_a_read_only_one(
    maskgit: Maskgit, tmp_path: Path, disk: Path
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(12):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index:02d}.jpg")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "cached.yaml").write_text(EXPERIMENT)
    store = disk / "store"
    asked = [
        "experiment=cached",
        f"dataset.root={tmp_path / 'pictures'}",
        f"paths.store={store}",
        "tracking.ship=false",
    ]
    asked += ["--config-dir", str(tmp_path / "mine")]

    def refused(*said: str) -> None:
        done = maskgit("run", *asked)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stdout, done.stdout + done.stderr
        assert all(text in lines[0] for text in said), lines
        assert not list(store.glob("cache_tokens/*/manifest.json"))

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)

    without = maskgit("run", *asked, "~pipeline.steps.cache_tokens")
    assert without.returncode == 0, without.stdout + without.stderr
    bad = tmp_path / "pictures" / "09.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])  # its header is right, its pixels are not all there
    refused("09.jpg")
    bad.write_bytes(whole)
    remount("ro")
    refused("read-only")
    remount("rw")
    with pytest.raises(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1024))
    refused("disk is full")
    (disk / "ballast").unlink()
    done = maskgit("run", *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    (step,) = store.glob("cache_tokens/*/files")
    checked = maskgit("shards", "verify", str(step))
    assert checked.returncode == 0 and "12 samples in 3 shards" in checked.stdout, checked.stdout + checked.stderr
