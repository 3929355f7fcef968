"""Caching onto real disks that are full or read-only: one line, nothing half-written, and it goes on when mended."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskgit_core.errors import ArtifactError
from maskgit_core.images.encoding import Encoder
from maskgit_core.shards.checks import problems
from maskgit_core.shards.maker import CacheMaker, Settings, finished_indexes
from maskgit_core.shards.writer import write_manifest


class Noise:
    """40 pictures made from their index."""

    num_classes = None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return SimpleNamespace(key=f"p{index}", image=pixels, label=-1)


class Brightness(torch.nn.Module):
    """Brightness of 4 x 4 cells, computed by a matrix product and finely cut, so that the precision shows."""

    codebook_size = 256

    def encode(self, images):
        cells = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        sums = cells @ torch.ones(48, 1)
        return (sums.float() * 100).round().long().remainder(256).view(-1, 2, 2)


def make(folder: Path, precision: str = "fp32") -> None:
    settings = Settings(shard_size=8, batch_size=8, num_workers=1, precision=precision)
    assert CacheMaker(Noise(), Encoder(Brightness(), "cpu", precision), folder, settings).run()
    layout, indexes = finished_indexes(folder, 5)
    write_manifest(folder, layout, indexes, num_classes=None)


@pytest.fixture
def disk(tmp_path):
    """A file system of 48 kB; a shard of 8 samples takes 17 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs privileges: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_full_disk_leaves_whole_shards_only_and_is_gone_on_from(disk, tmp_path):
    make(tmp_path / "undisturbed")
    folder = disk / "cache"
    with pytest.raises(ArtifactError) as caught:
        make(folder)
    line = str(caught.value)
    assert line.startswith(f"{folder}/") and "the disk is full" in line and "\n" not in line
    left = names(folder)
    assert "manifest.json" not in left and not [n for n in left if n.endswith(".tmp")]
    for path in folder.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "undisturbed" / path.name).read_bytes()
    remount(disk, "size=1m")
    make(folder)
    assert list(problems(folder)) == []
    assert {n: (folder / n).read_bytes() for n in names(folder)} == {
        n: (tmp_path / "undisturbed" / n).read_bytes() for n in names(tmp_path / "undisturbed")
    }


def test_a_read_only_folder_is_one_line(disk):
    folder = disk / "cache"
    folder.mkdir()
    remount(disk, "ro")
    with pytest.raises(ArtifactError) as caught:
        make(folder)
    assert "read-only" in str(caught.value) and str(folder) in str(caught.value)


def test_a_lower_precision_is_used_where_asked_for(tmp_path):
    make(tmp_path / "fp32")
    make(tmp_path / "bf16", "bf16")
    left, right = ((tmp_path / p / "shard-000000.tar").read_bytes() for p in ("fp32", "bf16"))
    assert len(left) == len(right) and left != right
