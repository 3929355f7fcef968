"""torchvision's datasets read through its own classes, from small files in its layouts."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_fashion import write_small_fashion

from maskgit_core.datasets import fashion_mnist
from maskgit_core.datasets import torchvision as component
from maskgit_core.errors import DataError


def test_it_gives_what_the_own_reader_gives(tmp_path: Path) -> None:
    write_small_fashion(tmp_path / "FashionMNIST" / "raw", 30, 20)
    for split, count in (("train", 30), ("test", 20)):
        mine = component.Dataset(root=str(tmp_path), which="FashionMNIST", split=split, image_size=28, channels=1)
        own = fashion_mnist.Dataset(root=str(tmp_path), split=split)  # type: ignore[arg-type]
        assert len(mine) == len(own) == count and mine.num_classes == 10 and mine.class_names[0] == "T-shirt/top"
        for index in range(count):
            assert np.array_equal(mine[index].image, own[index].image) and mine[index].label == own[index].label
        mine.check()
    with pytest.raises(IndexError):
        mine[20]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with a few made-up pictures; their checksums are not asked for."""
    from torchvision.datasets import CIFAR10

    folder, draws = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("data_batch_1", 12), ("test_batch", 10)):
        pixels = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return tmp_path


def test_pixels_labels_and_names_are_the_files(cifar: Path) -> None:
    data = component.Dataset(root=str(cifar), which="CIFAR10", split="test")
    batch = pickle.loads((cifar / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert data.num_classes == 10 and data.class_names[3] == "class 3" and data.labels == batch["labels"]
    assert np.array_equal(data[4].image, batch["data"][4].reshape(3, 32, 32).transpose(1, 2, 0))
    assert component.Dataset(root=str(cifar), which="CIFAR10", image_size=64)[0].image.shape == (64, 64, 3)


def test_celeba_is_cut_around_the_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CelebA

    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    pixels = np.zeros((218, 178, 3), dtype=np.uint8)
    pixels[57:185, 25:153] = 200
    names = [f"{i:06d}.png" for i in range(1, 5)]
    for name in names:
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {i % 3}\n" for i, n in enumerate(names)))
    (folder / "identity_CelebA.txt").write_text("".join(f"{n} {i}\n" for i, n in enumerate(names)))
    (folder / "list_bbox_celeba.txt").write_text("4\nimage_id x y w h\n" + "".join(f"{n} 1 1 1 1\n" for n in names))
    (folder / "list_landmarks_align_celeba.txt").write_text("4\na b\n" + "".join(f"{n} 1 1\n" for n in names))
    (folder / "list_attr_celeba.txt").write_text("4\nBald Young\n" + "".join(f"{n} -1 1\n" for n in names))
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    data = component.Dataset(root=str(tmp_path), which="CelebA", split="all", image_size=64)
    assert len(data) == 4 and data.num_classes is None and data[0].label == -1 and data.crop == "aligned"
    assert data[0].image.shape == (64, 64, 3) and (data[0].image == 200).all(), "the square and nothing around it"
    assert len(component.Dataset(root=str(tmp_path), which="CelebA", split="train")) == 2


def test_what_is_missing_is_one_line_with_the_command(tmp_path: Path, cifar: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "note.txt").write_text("x")
    for options, words in (
        ({"root": str(empty), "which": "CIFAR10"}, f"python -m maskgit_core.datasets.torchvision CIFAR10 {empty}"),
        ({"root": str(cifar), "which": "CIFAR10", "split": "val"}, "one of [train, test]"),
        ({"root": str(cifar), "which": "CIFAR10", "crop": "aligned"}, "use center or none"),
        ({"root": str(tmp_path / "no"), "which": "MNIST"}, "there is no such file or folder"),
    ):
        with pytest.raises(DataError) as caught:
            component.Dataset(**options)  # type: ignore[arg-type]
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_refuses_unknown_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert component.main(["CIFAR11", "x"]) == 2 and "CIFAR100" in capsys.readouterr().err
    from torchvision.datasets import KMNIST

    def offline(self: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz: no network")

    monkeypatch.setattr(KMNIST, "download", offline)
    assert component.main(["KMNIST", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["imagenet", "ffhq", "celeba_hq", "torchvision"])
def test_a_split_that_a_stage_asks_for_and_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    """`evaluate.test_split` is `test` by default, which ImageNet (with classes) and FFHQ do not have."""
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^split: .* has no 'exam'.*; one of \["):
        importlib.import_module(f"maskgit_core.datasets.{name}").Dataset(root=str(tmp_path), split="exam")
