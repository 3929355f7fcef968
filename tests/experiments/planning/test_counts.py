"""Too few pictures or samples for what is measured, and files that cannot serve, are refused when they are planned."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_data import write_torch_statistics, write_virtual

from experiments.planning.graph import Graph
from experiments.planning.pipeline import build
from maskgit_core.errors import DataError, MaskgitError
from maskgit_core.images.image_sets import check_sizes


def planned(tmp_path: Path, *arguments: str) -> Graph:
    return build([*arguments, f"paths.store={tmp_path / 'store'}"], digest=lambda key, value, mark: "0" * 64)


def refused(tmp_path: Path, *arguments: str) -> str:
    with pytest.raises(MaskgitError) as error:
        planned(tmp_path, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def pictures(root: Path, count: int) -> Path:
    for index in range(count):
        (root / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(root / "a" / f"{index}.png")
    return root


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int) -> Any:
    return np.zeros((count, 28, 28, 3), np.uint8)


QUICK = "experiment=quickstart"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("metrics=[frechet,kernel_distance] sample.num_samples=40",
         "eval_tokenizer.metrics: 1000 pictures are needed (kernel_distance has subsets of 1000), there are 500; give"),
        ("metrics=[frechet,precision_recall] reference_statistics.num_kept=3 reference_statistics.num_images=3",
         "eval_tokenizer.metrics: 6 reference pictures are needed (precision_recall looks at 5 neighbours), there"),
        ("sample.num_samples=1", "evaluate.num_images: 2 samples are needed (a covariance is of at least 2), there"),
        ("evaluate.samples=bundled:fashion_mnist_subset", "evaluate.samples: given, and a step makes samples too"),
        ("reference_statistics.split=val", "split: Fashion-MNIST has no 'val'; one of [train, test]"),
        ("evaluate.test_split=val", "split: Fashion-MNIST has no 'val'; one of [train, test]"),
        ("tokenizer.downsample_factor=16", "image_size: found 28; this tokenizer makes a token of 16 pixels"),
    ],
)  # fmt: skip
def test_the_quickstart(tmp_path: Path, asked: str, said: str) -> None:
    assert said in refused(tmp_path, QUICK, *asked.split())


def test_splits_of_the_inception_score(tmp_path: Path) -> None:
    asked = ["experiment=tokenizer_table", "dataset=image_folder", "eval_tokenizer.split=''"]
    few = refused(tmp_path, *asked, f"dataset.root={pictures(tmp_path / 'few', 9)}")
    assert "metrics: 10 pictures are needed (inception_score is over 10 splits), there are 9" in few
    enough = f"dataset.root={pictures(tmp_path / 'enough', 10)}"
    assert planned(tmp_path, *asked, enough).nodes
    assert "there are 4" in refused(tmp_path, *asked, enough, "eval_tokenizer.num_images=4")


def test_a_network_of_one_image_size(tmp_path: Path) -> None:
    asked = ["experiment=tokenizer_table", "dataset=image_folder", "eval_tokenizer.split=''"]
    root = f"dataset.root={pictures(tmp_path / 'data', 10)}"
    said = refused(tmp_path, *asked, root, "dataset.image_size=128")
    assert "dataset.image_size: found 128; this tokenizer takes images of 256 pixels alone; set it to 256" in said


def test_samples_of_others(tmp_path: Path) -> None:
    asked = ["experiment=evaluate_samples"]
    with pytest.raises(DataError, match=r"^samples: missing; give the file or folder with samples=PATH"):
        build([*asked, f"paths.store={tmp_path / 'store'}"])
    assert "there are 1;" in refused(tmp_path, *asked, f"evaluate.samples={npz(tmp_path / 'one.npz', arr_0=images(1))}")
    wrong = npz(tmp_path / "wrong.npz", mu=np.zeros(3))
    assert "wrong.npz: has no array arr_0; it has [mu]" in refused(tmp_path, *asked, f"evaluate.samples={wrong}")
    (tmp_path / "empty").mkdir()
    assert "no pictures here" in refused(tmp_path, *asked, f"evaluate.samples={tmp_path / 'empty'}")
    assert planned(tmp_path, *asked, f"evaluate.samples={npz(tmp_path / 'two.npz', arr_0=images(64))}").nodes


def test_a_folder_of_samples_of_two_sizes_is_refused_before_the_run(tmp_path: Path) -> None:
    root = pictures(tmp_path / "samples", 2)
    check_sizes(root)
    Image.new("RGB", (33, 32)).save(root / "a" / "2.png")
    with pytest.raises(DataError, match=r"2.png: 33 x 32 pixels where others have 32 x 32; samples must have one size"):
        check_sizes(root)


def test_statistics_of_others(tmp_path: Path) -> None:
    asked, key = ["experiment=maskbit_imagenet"], "reference_statistics.statistics"
    assert planned(tmp_path, *asked, f"{key}={write_virtual(tmp_path / 'virtual.npz')}").nodes
    half = npz(tmp_path / "half.npz", mu=np.zeros(2048), sigma=np.eye(2))
    assert f"{key}: {half} holds no spatial statistics" in refused(tmp_path, *asked, f"{key}={half}")
    said = refused(tmp_path, *asked, f"{key}={half}", "metrics=[frechet,precision_recall]")
    assert "holds no pictures (arr_0), which precision_recall needs" in said
    assert planned(tmp_path, *asked, f"{key}={half}", "metrics=[frechet]").nodes
    (tmp_path / "text.npz").write_text("<html>404</html>")
    assert "is no .npz file" in refused(tmp_path, *asked, f"{key}={tmp_path / 'text.npz'}")
    halton = ["experiment=halton_imagenet", f"{key}={tmp_path / 'it.pt'}"]
    write_torch_statistics(tmp_path / "it.pt")
    assert planned(tmp_path, *halton).nodes
    (tmp_path / "it.pt").write_bytes(pickle.dumps({"mu": 1, "cov": 2}))
    assert f"{key}: {tmp_path / 'it.pt'} cannot be read as tensors" in refused(tmp_path, *halton)
    torch.save({"mu": torch.zeros(2), "cov": Path("x")}, tmp_path / "it.pt")
    assert "holds more than tensors (pathlib" in refused(tmp_path, *halton)
    torch.save({"mean": torch.zeros(2)}, tmp_path / "it.pt")
    assert "statistics are mu and cov" in refused(tmp_path, *halton)
