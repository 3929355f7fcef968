"""Training of the classifier that names pictures: resumed, it is the same; `evaluate` asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stage_calls import call

from experiments.config.specs import DatasetSpec
from experiments.evaluation.class_names import load_classifier
from experiments.running.attempt import Attempt, Stopped
from experiments.running.signals import StopFlag
from experiments.stages import train_classifier
from maskgit_core.errors import ArtifactError, DataError
from maskgit_core.evaluation.residual_classifier import Recipe, Trainer, shifted

CLASSES = {"dark": 40, "middle": 128, "light": 220}
VALUES: dict[str, Any] = {"num_train_steps": 24, "batch_size": 12, "width": 8, "lr": 0.05, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    """Classes that a brightness tells apart."""
    root, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name, grey in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (grey + draws.integers(-20, 20, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:02d}.png")
    return DatasetSpec("image_folder", {"root": str(root), "split": "train", "image_size": 32})


class StopAfter(StopFlag):
    """Asks to stop once it has been looked at `count` times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_stopped_and_resumed_it_is_the_same_and_names_pictures(tmp_path: Path, pictures: DatasetSpec) -> None:
    whole = Attempt(tmp_path / "whole")
    call(train_classifier, whole, dataset=pictures, **VALUES)
    cut = Attempt(tmp_path / "cut", 1, stop=StopAfter(7))
    with pytest.raises(Stopped):
        call(train_classifier, cut, dataset=pictures, **VALUES)
    resumed = Attempt(tmp_path / "cut", 2)
    call(train_classifier, resumed, dataset=pictures, **VALUES)
    for name in ("classifier.safetensors", "classifier.json"):
        assert (whole.files / name).read_bytes() == (resumed.files / name).read_bytes()
    told = json.loads((whole.files / "classifier.json").read_text())
    assert told["class_accuracy"] == whole.notes.facts["class_accuracy"] >= 0.9

    model, about = load_classifier(whole.files, "cpu")
    assert about["trained_on"] == "60 images of image_folder train"
    dark = torch.full((2, 3, 32, 32), CLASSES["dark"], dtype=torch.uint8)
    assert model(dark).argmax(1).tolist() == [sorted(CLASSES).index("dark")] * 2
    assert torch.allclose(model(dark), model(dark.flip(3)), atol=1e-5)  # the mean of a picture and its mirror image


def test_a_dataset_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "0.png")
    flat = DatasetSpec("image_folder", {"root": str(tmp_path / "flat"), "image_size": 32})
    with pytest.raises(DataError, match=r"train_classifier\.dataset: has no classes"):
        call(train_classifier, Attempt(tmp_path / "step"), dataset=flat, train_split="", test_split="", **VALUES)


def test_a_damaged_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run train_classifier again"):
        load_classifier(tmp_path, "cpu")


def test_shifts_move_pictures_by_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 64).view(2, 3, 8, 8).to(torch.uint8)
    moved = shifted(images, 2, np.random.default_rng(3))
    assert moved.shape == images.shape and moved.dtype == torch.uint8 and not torch.equal(moved, images)
    found = [
        any(torch.equal(moved[0, :, 2:6, 2:6], images[0, :, t : t + 4, s : s + 4]) for t in range(5) for s in range(5))
    ]
    assert all(found)


def test_batches_are_functions_of_the_step() -> None:
    images = torch.randint(0, 255, (30, 3, 32, 32), dtype=torch.uint8)
    makers = [Trainer(images, torch.arange(30) % 3, 3, Recipe(batch_size=7, width=8), "cpu") for _ in range(2)]
    makers[0].batch(0)
    for one, other in zip(makers[0].batch(4), makers[1].batch(4), strict=True):
        assert torch.equal(one, other)
