"""Colour photographs from a folder to scores: `experiment=cifar10` and `experiment=own_images`, at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgit_core.datasets import cifar10
from maskgit_core.files import read_json

CIFAR = {
    "train_tokenizer": "num_train_steps=12 disc_weight=0.3 disc_start=6 disc_layers=1 disc_width=8 num_held_out=10",
    "tokenizer": "width=8 codebook_size=16",
    "model": "dim=32 num_layers=1",
    "train": "num_train_steps=8 batch_size=8",
    "sample": "num_samples=20",
    "sample_untrained": "num_samples=20",
    "sampler": "num_steps=3",
    "reference_statistics": "num_images=20",
    "eval_tokenizer": "num_images=20",
    "evaluate": "num_images=20",
    "train_classifier": "num_train_steps=3 batch_size=8 width=8",
}
OWN = {
    "train_tokenizer": "num_train_steps=10 perceptual=none",
    "tokenizer": "width=8 codebook_size=16",
    "model": "dim=32 num_layers=1 num_heads=2",
    "train": "num_train_steps=6 batch_size=8",
    "sample": "num_samples=8",
    "sampler": "num_steps=3",
    "dataset": "image_size=32 damaged=leave_out",
}


def overrides(values: dict[str, str]) -> list[str]:
    return [f"{block}.{value}" for block, told in values.items() for value in told.split()]


def picture(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures a class to train on, 4 to test."""
    root = tmp_path_factory.mktemp("cifar10")
    for split, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(cifar10.CLASS_NAMES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(1000 * label + number).save(root / split / name / f"{number:04d}.jpg")
    return root


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder with every kind of picture that people have, and one that is cut off."""
    root = tmp_path_factory.mktemp("odd")
    for number in range(24):
        picture(number, (48 + number, 40)).save(root / f"{number:02d}.jpg")
    picture(30).convert("CMYK").save(root / "cmyk.jpg")
    picture(31).convert("P").save(root / "palette.png")
    picture(32).convert("L").save(root / "grey.png")
    picture(33).convert("RGBA").save(root / "alpha.png")
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)).save(root / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture(34, (64, 32)).save(root / "turned.jpg", exif=exif)
    whole = (root / "00.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return root


def scores(store: Path) -> dict[str, Any]:
    (path,) = store.glob("evaluate/*/attempts/*/files/scores.json")
    return json.loads(path.read_text())


def test_cifar10_from_its_folders_to_scores(maskgit: Any, small_cifar: Path, tmp_path: Path) -> None:
    done = maskgit("run", "experiment=cifar10", f"dataset.root={small_cifar}", f"paths.store={tmp_path / 'store'}",
                   "launcher=inline", "tracking.ship=false", *overrides(CIFAR))  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    text = json.dumps(scores(tmp_path / "store"))
    for wanted in ("fd_efficientnet_lite0", "untrained model", "class_accuracy"):
        assert wanted in text
    named = [row for row in scores(tmp_path / "store")["scores"] if row["name"] == "class_accuracy"]
    assert [row["of"] for row in named] == ["real images", "samples"]
    assert all(row["trained_on"] == "200 images of cifar10 train" for row in named)
    planned = maskgit("plan", "experiment=cifar10", f"dataset.root={small_cifar}", "evaluate.dataset=null")
    assert planned.returncode == 2 and "evaluate.dataset: found null, and a classifier" in planned.stderr
    (manifest,) = (tmp_path / "store").glob("train_tokenizer/*/manifest.json")
    facts = (read_json(manifest) or {})["facts"]
    assert facts["perceptual"]["name"] == "efficientnet_lite1" and len(facts["perceptual"]["sha256"]) == 64


def test_own_pictures_of_every_kind_to_scores(maskgit: Any, odd_pictures: Path, tmp_path: Path) -> None:
    asked = ["experiment=own_images", f"dataset.root={odd_pictures}", f"paths.store={tmp_path / 'store'}"]
    planned = maskgit("plan", *asked)
    assert "found: 31 pictures, no classes" in planned.stdout and "31 pictures are few" in planned.stdout
    assert "40 x 40 pixels" in planned.stdout  # no larger than the pictures
    done = maskgit("run", *asked, "launcher=inline", "tracking.ship=false", *overrides(OWN))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "1 of 31 pictures cannot be decoded and are left out: cut.jpg" in done.stdout + done.stderr
    assert "fd_efficientnet_lite0" in json.dumps(scores(tmp_path / "store"))


def test_a_published_tokenizer_takes_the_place_of_training_one(
    maskgit: Any, odd_pictures: Path, tmp_path: Path
) -> None:
    done = maskgit("plan", "experiment=own_images", "tokenizer=maskgit_vqgan", f"dataset.root={odd_pictures}",
                   f"paths.store={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train_tokenizer" not in done.stdout and "256 x 256 pixels" in done.stdout
    assert "maskgit weights fetch titok/maskgit-vqgan-imagenet-f16-256" in done.stdout


def test_what_cannot_be_chosen_is_refused(maskgit: Any, tmp_path: Path) -> None:
    asked = ["plan", "experiment=own_images", f"paths.store={tmp_path}"]
    for changed, said in (
        (f"dataset.root={tmp_path / 'nowhere'}", "there is no such file or folder"),
        ("dataset=fashion_mnist_subset", "dataset.name: sizes are chosen (`auto`) for image_folder alone"),
    ):
        done = maskgit(*asked, changed)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
