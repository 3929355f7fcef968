"""Datasets: what the files say is what comes out, and damage is one line before work begins."""

from __future__ import annotations

import gzip
import importlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit_core.content import BUNDLED
from maskgit_core.datasets import Sample, fashion_mnist, image_folder
from maskgit_core.errors import DataError
from maskgit_core.images import transforms

ROOT = Path(__file__).resolve().parents[3]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DATASETS = sorted(p.stem for p in (ROOT / "maskgit_core" / "datasets").glob("[a-z]*.py"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for index, name in enumerate(("b/x.png", "a/2.jpg", "a/1.png", "a/deep/3.webp", "a/note.txt")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            path.write_text("no picture")
            continue
        pixels = draws.integers(0, 256, (40 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "set"


@pytest.mark.parametrize("name", DATASETS)
def test_importing_a_data_set_loads_neither_torch_nor_numpy(name: str) -> None:
    code = (
        f"import sys, maskgit_core.datasets.{name}; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DATASETS)
def test_every_file_is_a_component(name: str) -> None:
    cls = importlib.import_module(f"maskgit_core.datasets.{name}").Dataset
    for member in ("__len__", "__getitem__", "check"):
        assert callable(getattr(cls, member)), f"{name}.Dataset has no {member}"


@pytest.mark.parametrize(("split", "count"), [("train", 10_000), ("test", 2_000)])
def test_bundled_subset_is_balanced(split: str, count: int) -> None:
    data = fashion_mnist.Dataset(root="bundled:fashion_mnist_subset", split=split)  # type: ignore[arg-type]
    assert len(data) == count and data.num_classes == len(data.class_names) == 10
    assert np.bincount(data.labels).tolist() == [count // 10] * 10
    sample = data[7]
    assert isinstance(sample, Sample) and sample.image.shape == (28, 28, 1) and sample.image.dtype == np.uint8
    assert len({data[i].key for i in range(0, count, 97)}) == len(range(0, count, 97))
    with pytest.raises(IndexError):
        data[count]


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_subset_is_made_reproducibly_from_the_full_set(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from tools.make_fashion_mnist_subset import make

    make(DEBIAN, tmp_path, splits=("test",))
    bundled = BUNDLED / "fashion_mnist_subset"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["LICENSE.txt", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    for name in names:
        mine, theirs = (tmp_path / name).read_bytes(), (bundled / name).read_bytes()
        # Other zlib builds may pack differently; the content must be the same everywhere.
        assert gzip.decompress(mine) == gzip.decompress(theirs) if name.endswith(".gz") else mine == theirs


def test_resizing_and_colour_of_fashion_mnist() -> None:
    data = fashion_mnist.Dataset(root="bundled:fashion_mnist_subset", split="test", image_size=32, channels=3)
    image = data[0].image
    assert image.shape == (32, 32, 3) and (image[..., 0] == image[..., 2]).all()


def write_idx(path: Path, values: np.ndarray, header: bytes | None = None) -> None:
    start = header or bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(start + values.tobytes())


@pytest.mark.parametrize("damage", ["short", "magic", "count", "label", "gzip"])
def test_damaged_idx_files_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([0, 1, 2], np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    if damage == "short":
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "magic":
        write_idx(tmp_path / "train-images-idx3-ubyte", images, b"\x80\x02c__builtin__\n")
    elif damage == "count":
        write_idx(tmp_path / "train-labels-idx1-ubyte", labels[:2])
    elif damage == "label":
        write_idx(tmp_path / "train-labels-idx1-ubyte", labels + 9)
    else:
        (tmp_path / "train-images-idx3-ubyte").unlink()
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images.tobytes())[:40])
    with pytest.raises(DataError) as caught:
        fashion_mnist.Dataset(root=str(tmp_path)).check()
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_class_folders_sorted_by_name(pictures: Path) -> None:
    data = image_folder.Dataset(root=str(pictures), image_size=16)
    assert data.class_names == ["a", "b"] and data.num_classes == 2
    assert [(data[i].key, data[i].label) for i in range(len(data))] == [
        ("a/1.png", 0),
        ("a/2.jpg", 0),
        ("a/deep/3.webp", 0),
        ("b/x.png", 1),
    ]
    assert all(data[i].image.shape == (16, 16, 3) for i in range(len(data)))
    data.check()


def test_random_resized_crops_belong_to_seed_and_index(pictures: Path) -> None:
    asked = {"root": str(pictures), "image_size": 16, "crop": "random_resized"}
    one, again = (image_folder.Dataset(**asked) for _ in range(2))  # type: ignore[arg-type]
    other = image_folder.Dataset(**asked, crop_seed=1)  # type: ignore[arg-type]
    boxes = [one[i].box for i in range(len(one))]
    assert boxes == [again[i].box for i in reversed(range(len(again)))][::-1] and len(set(boxes)) == len(boxes)
    assert boxes != [other[i].box for i in range(len(other))]
    assert all((one[i].image == again[i].image).all() for i in range(len(one)))
    whole = image_folder.Dataset(**asked, crop_scale=(1.0, 1.0))  # type: ignore[arg-type]
    areas = [b[2] * b[3] for b in (whole[i].box for i in range(len(whole))) if b is not None]
    assert all(area >= 0.9 * 30 * 40 for area in areas)
    with pytest.raises(DataError, match="crop_scale: found"):
        image_folder.Dataset(**asked, crop_scale=(0.9, 0.2))  # type: ignore[arg-type]


def test_flat_folders_have_no_classes_and_splits_are_folders(pictures: Path) -> None:
    flat = image_folder.Dataset(root=str(pictures), split="a/deep", image_size=16, channels=1)
    assert flat.num_classes is None and flat[0].label == -1 and flat[0].image.shape == (16, 16, 1)
    for split in ("nothing", "../set"):
        with pytest.raises(DataError):
            image_folder.Dataset(root=str(pictures), split=split)


def test_unreadable_pictures_are_named_and_counted_before_work(pictures: Path) -> None:
    (pictures / "a/1.png").write_bytes(b"not a picture")
    (pictures / "b/empty.png").write_bytes(b"")
    data = image_folder.Dataset(root=str(pictures), image_size=16)
    with pytest.raises(DataError, match=r"2 of 5 pictures cannot be read: a/1\.png, b/empty\.png"):
        data.check()
    path = pictures / "a/2.jpg"
    path.write_bytes(path.read_bytes()[:300])  # the header is whole, the pixels are not
    with pytest.raises(DataError, match=r"a/2\.jpg"):
        data[1]


def halve(pixels: np.ndarray) -> np.ndarray:
    """Mean of neighbouring columns, then of rows, each rounded half up: PIL's box filter at exactly half the size."""
    wide = pixels.astype(int)
    tall = (wide[:, 0::2] + wide[:, 1::2] + 1) // 2
    return np.asarray((tall[0::2] + tall[1::2] + 1) // 2, dtype=np.uint8)


def test_adm_crop_halves_with_a_box_then_scales_then_cuts() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (68, 96, 3), dtype=np.uint8)
    # 68 x 96 to 16: two halvings give 17 x 24, the bicubic 16 x 23, the cut columns 3 to 19.
    quarter = Image.fromarray(halve(halve(pixels))).resize((23, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(quarter)[:, 3:19]
    assert (transforms.adm_center_crop(pixels, 16) == expected).all()


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (33, 33), (16, 16), (7, 90)])
def test_crops_have_the_size_asked_for(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for kind in ("adm", "center", "none"):
        assert transforms.crop(pixels, 16, kind).shape == (16, 16, 3)  # type: ignore[arg-type]
    cut, box = transforms.IndexCrop("random_resized", 16)(pixels, 3)
    assert cut.shape == (16, 16, 3) and box is not None
    left, top, width, height = box
    assert 0 <= left <= left + width <= shape[1] and 0 <= top <= top + height <= shape[0]
    picture = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    assert (cut == np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))).all(), "the box is what was cut"


def test_center_crop_equals_torchvisions() -> None:
    from torchvision import transforms as tv

    for shape in ((41, 67), (67, 41), (40, 40)):
        pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
        steps = tv.Compose([tv.Resize(24, interpolation=tv.InterpolationMode.BICUBIC), tv.CenterCrop(24)])
        assert (transforms.center_crop(pixels, 24) == np.asarray(steps(Image.fromarray(pixels)))).all()


def test_splits_are_no_classes(pictures: Path) -> None:
    above = pictures.parent
    (above / "set").rename(above / "train")
    with pytest.raises(DataError, match=r"\[train\] are splits, not classes; set the dataset's root to .*/train"):
        image_folder.Dataset(root=str(above))
    assert image_folder.Dataset(root=str(above), split="train").num_classes == 2
    (above / "bus").mkdir()
    assert image_folder.Dataset(root=str(above)).class_names == ["bus", "train"], "the train is a vehicle here"
    (above / "val").mkdir()
    with pytest.raises(DataError, match=r"\[train, val\]"):
        image_folder.Dataset(root=str(above))


def test_the_fast_crop_differs_by_a_level_here_and_there() -> None:
    """PyTorch's bicubic filter on 8-bit values rounds other sums than PIL's: at most two levels, in few values."""
    waves = np.add.outer(np.arange(300) ** 2 / 400, np.arange(401) ** 2 / 500)
    noise = np.random.default_rng(0).normal(0, 9, (300, 401, 3))
    pixels = (127 + 90 * np.sin(waves / 6)[..., None] + noise).clip(0, 255).astype(np.uint8)
    for size in (256, 100, 64):
        exact = transforms.crop(pixels, size, "adm").astype(int)
        fast = transforms.crop(pixels, size, "adm_fast")
        assert fast.dtype == np.uint8 and fast.shape == (size, size, 3)
        off = np.abs(exact - fast)
        assert off.max() <= 2 and (off > 0).mean() < 0.02
    grey = transforms.crop(pixels[:, :, :1], 64, "adm_fast")
    assert grey.shape == (64, 64, 1)
