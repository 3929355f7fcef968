"""ImageNet in its three forms, FFHQ and CelebA-HQ, on small sets laid out like the real ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgit_core.datasets import celeba_hq, ffhq, imagenet
from maskgit_core.errors import DataError
from maskgit_core.images.tar_index import index_of, read_member

WNIDS = ("n01440764", "n01443537", "n15075141")


def jpeg(seed: int, side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data := io.BytesIO(), "PNG")
    return data.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, Path]:
    """The same six training and three validation pictures in every form."""
    train = {f"{w}/{w}_{i}.JPEG": jpeg(10 * c + i) for c, w in enumerate(WNIDS) for i in range(2)}
    val = {f"ILSVRC2012_val_0000000{c + 1}.JPEG": jpeg(100 + c) for c in range(3)}
    val_class = dict(zip(val, reversed(WNIDS), strict=True))
    folders, tars, shards = (tmp_path / name for name in ("folders", "tars", "shards"))
    for name, data in {**{f"train/{n}": d for n, d in train.items()},
                       **{f"val/{val_class[n]}/{n}": d for n, d in val.items()}}.items():  # fmt: skip
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_bytes(data)
    tars.mkdir()
    inner = {f"{w}.tar": tar_of({n.split("/")[1]: d for n, d in train.items() if n.startswith(w)}) for w in WNIDS}
    (tars / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (tars / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    rows = [f"{Path(n).stem},{val_class[n]} 1 2 3 4 " for n in val]
    (tars / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    shards.mkdir()
    for split, files in (("train", train), ("val", {f"{val_class[n]}/{n}": d for n, d in val.items()})):
        members: dict[str, bytes] = {}
        for name, data in files.items():
            key = Path(name).stem
            members |= {
                f"{key}.jpg": data,
                f"{key}.cls": str(WNIDS.index(name.split("/")[0])).encode(),
                f"{key}.json": b"{}",
            }
        (shards / f"imagenet1k-{split}-0000.tar").write_bytes(tar_of(members))
    return {"folders": folders, "tars": tars, "shards": shards}


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_three_forms_hold_the_same_pictures_and_classes(forms: dict[str, Path], split: str) -> None:
    seen = []
    for root in forms.values():
        data = imagenet.Dataset(root=str(root), split=split, image_size=16, partial=True)  # type: ignore[arg-type]
        data.check()
        seen.append(sorted((data[i].label, data[i].image.tobytes()) for i in range(len(data))))
        assert data.labels == [data[i].label for i in range(len(data))]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == (6 if split == "train" else 3)
    assert {label for label, _ in seen[0]} == {0, 1, 2}, "places in the sorted WordNet ids"


def test_counts_are_reported(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="3 classes in split train, ILSVRC 2012 has 1000"):
        imagenet.Dataset(root=str(forms["folders"]))
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    with pytest.raises(
        DataError, match=r"has 6 pictures, ILSVRC 2012 has 1,281,167; 3 classes fall short: n01440764 \(2\)"
    ):
        imagenet.Dataset(root=str(forms["folders"])).check()


def test_classes_by_other_names_would_not_be_the_standard_labels(
    forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    (forms["folders"] / "train" / WNIDS[0]).rename(forms["folders"] / "train" / "tench")
    with pytest.raises(DataError, match="class tench is no WordNet id"):
        imagenet.Dataset(root=str(forms["folders"]))
    assert imagenet.Dataset(root=str(forms["folders"]), partial=True).num_classes == 3


def test_every_form_can_be_cut_at_random(forms: dict[str, Path]) -> None:
    asked = {"image_size": 16, "crop": "random_resized", "crop_seed": 7, "partial": True}
    seen = []
    for form in ("folders", "tars"):
        data = imagenet.Dataset(root=str(forms[form]), **asked)  # type: ignore[arg-type]
        seen.append([(data[i].box, data[i].image.tobytes()) for i in range(len(data))])
    assert seen[0] == seen[1] and len({box for box, _ in seen[0]}) == 6


@pytest.mark.parametrize("damage", ["empty", "solution", "cut", "compressed", "class"])
def test_what_is_wrong_is_said_in_one_line(forms: dict[str, Path], tmp_path: Path, damage: str) -> None:
    root, split = forms["tars"], "val"
    if damage == "empty":
        root = tmp_path / "empty"
        root.mkdir()
    elif damage == "solution":
        (root / "LOC_val_solution.csv").unlink()
    elif damage == "cut":
        path = root / "ILSVRC2012_img_val.tar"
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "compressed":
        (root / "ILSVRC2012_img_val.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    else:
        root = forms["shards"]
        (root / "imagenet1k-val-0000.tar").write_bytes(tar_of({"a.jpg": jpeg(0), "a.cls": b"tench"}))
    with pytest.raises(DataError) as caught:
        imagenet.Dataset(root=str(root), split=split, partial=True)  # type: ignore[arg-type]
    assert str(root) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_tars_index_is_kept_and_made_anew_when_the_tar_changes(forms: dict[str, Path], tmp_path: Path) -> None:
    path = forms["shards"] / "imagenet1k-val-0000.tar"
    before = index_of(path)
    kept = list((tmp_path / "home" / "tar_indexes").iterdir())
    assert len(kept) == 1 and index_of(path) == before
    path.write_bytes(tar_of({"b.cls": b"7"}))
    after = index_of(path)
    assert [m.name for m in after] == ["b.cls"] and read_member(path, after[0]) == b"7"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cut short"):
        read_member(path, after[0])


def test_faces_are_ordered_by_number_and_split_at_the_end(tmp_path: Path) -> None:
    for index in (0, 2, 10, 1):
        path = tmp_path / f"{index // 2 * 2:05d}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(index))
    asked = {"root": str(tmp_path), "image_size": 16, "num_val": 1}
    for module in (ffhq, celeba_hq):
        data = module.Dataset(**asked, partial=True)
        data.check()
        assert [Path(data[i].key).stem for i in range(4)] == ["0", "1", "2", "10"] and data[0].label == -1
        parts = [module.Dataset(**asked, split=split) for split in ("train", "val")]
        assert [len(part) for part in parts] == [3, 1] and data[3].image.shape == (16, 16, 3)
        with pytest.raises(DataError, match=f"4 pictures, {parts[0].title} has {module.COUNT:,}"):
            parts[0].check()
