"""CIFAR-10 in its three layouts, and pictures of every mode."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit_core.datasets import cifar10, image_folder
from maskgit_core.errors import DataError
from maskgit_core.images.pictures import read_picture

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


@pytest.fixture
def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    draws = np.random.default_rng(0)
    return {name: (draws.integers(0, 256, (4, 3072), dtype=np.uint8), [0, 9, 3, 3]) for name in BATCHES}


def write(root: Path, kind: str, batches: dict[str, tuple[np.ndarray, list[int]]]) -> None:
    folder = root / f"cifar-10-batches-{kind}"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        if kind == "py":
            content = {b"data": pixels, b"labels": labels, b"batch_label": b"batch", b"filenames": []}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            (folder / f"{name}.bin").write_bytes(np.column_stack([np.uint8(labels), pixels]).tobytes())


def test_pickled_and_binary_batches_hold_the_same(tmp_path: Path, batches: dict) -> None:
    write(tmp_path / "a", "py", batches)
    write(tmp_path / "b", "bin", batches)
    for split, count in (("train", 20), ("test", 4)):
        one, two = (cifar10.Dataset(root=str(tmp_path / name), split=split) for name in "ab")
        assert len(one) == len(two) == count
        for a, b in zip(one, two, strict=True):
            assert np.array_equal(a.image, b.image) and (a.label, a.key) == (b.label, b.key)
    pixels, labels = batches["data_batch_2"]
    sample = cifar10.Dataset(root=str(tmp_path / "a"))[5]
    assert sample.label == labels[1] and np.array_equal(sample.image[:, :, 2].ravel(), pixels[1, 2048:])


def test_a_batch_that_names_code_is_refused_and_not_run(tmp_path: Path, batches: dict) -> None:
    write(tmp_path, "py", batches)

    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Bad()}))
    with pytest.raises(DataError, match="test_batch: is no batch of CIFAR-10"):
        cifar10.Dataset(root=str(tmp_path), split="test")
    assert not (tmp_path / "ran").exists()


def test_a_cut_batch_other_folders_and_nothing_are_one_line(tmp_path: Path, batches: dict) -> None:
    write(tmp_path, "bin", batches)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="no whole number of records"):
        cifar10.Dataset(root=str(tmp_path), split="test")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no cifar-10-batches-py"):
        cifar10.Dataset(root=str(tmp_path / "none"))
    for split in ("train", "test"):
        (tmp_path / "cats" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "cats" / split / "cat" / "1.png")
    with pytest.raises(DataError, match="its class folders are"):
        cifar10.Dataset(root=str(tmp_path / "cats"))


def test_classes_of_picture_files_take_turns(tmp_path: Path) -> None:
    for name in cifar10.CLASS_NAMES:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (32, 32)).save(tmp_path / split / name / f"{number}.png")
    data = cifar10.Dataset(root=str(tmp_path))
    assert [data[i].label for i in range(20)] == [*range(10), *range(10)] == [*data.labels[:20]]
    assert len({sample.key for sample in data}) == len(data) == 30


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    for channels in (1, 3):
        found = read_picture(tmp_path / "ramp.png", channels)
        assert found.shape == (64, 64, channels) and np.abs(found[..., 0] - ramp / 257.0).max() <= 0.5


def test_orientation_is_followed_where_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").shape == (40, 60, 3)
    assert read_picture(tmp_path / "x.jpg", upright=True).shape == (60, 40, 3)


def test_damaged_pictures_are_named_and_left_out_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(noise).save(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:1500])
    data = image_folder.Dataset(root=str(tmp_path), image_size=32, damaged="leave_out")
    assert [sample.key for sample in data] == ["a.jpg", "c.jpg"] and data.left_out == ["b.jpg"]
    assert "1 of 3 pictures cannot be decoded and are left out: b.jpg" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"b\.jpg: the picture cannot be decoded"):
        image_folder.Dataset(root=str(tmp_path), image_size=32)[1]
