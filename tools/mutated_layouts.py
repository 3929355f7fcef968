"""Data layouts and files with one thing changed, from a seed: what `tools/mutated_requests.py` asks runs to read."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

#: The one change that only decoding every picture would show: `run` reads headers, and the step that meets it says so.
AFTER_HEADER = "a file cut after its header"
_WNIDS = ("n01440764", "n01514668", "n01537544")


def picture(path: Path, draw: random.Random, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode in ("L", "I;16") else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 255, shape, dtype=np.uint8)
    Image.fromarray(pixels.astype(np.uint16) * 257 if mode == "I;16" else pixels).save(path)


def plain(root: Path, draw: random.Random) -> None:
    """Class folders with a few pictures each."""
    for label in range(draw.randrange(1, 4)):
        for number in range(draw.randrange(1, 7)):
            picture(root / f"class{label}" / f"{number}.png", draw)


def instead(path: Path, make: Callable[[], object]) -> None:
    """Puts something else in a file's place."""
    path.unlink()
    make()


def spoil(root: Path, draw: random.Random) -> str:
    """Changes one thing of class folders; says which."""
    files = sorted(root.rglob("*.png"))
    one = draw.choice(files)
    changes: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "an empty file": lambda: one.write_bytes(b""),
        "a cut header": lambda: one.write_bytes(one.read_bytes()[:20]),
        AFTER_HEADER: lambda: one.write_bytes(one.read_bytes()[:60]),
        "text named .png": lambda: one.write_text("no picture"),
        "HTML named .png": lambda: one.write_text("<html>404</html>"),
        "a grey picture": lambda: picture(one, draw, "L"),
        "a picture with alpha": lambda: picture(one, draw, "RGBA"),
        "a 16-bit picture": lambda: picture(one, draw, "I;16"),
        "a picture of one pixel": lambda: picture(one, draw, size=(1, 1)),
        "a long strip": lambda: picture(one, draw, size=(2000, 3)),
        "a broken link": lambda: instead(one, lambda: one.symlink_to(root / "nowhere.png")),
        "a folder named .png": lambda: instead(one, one.mkdir),
        "an empty class": lambda: (root / "empty").mkdir(),
        "only empty classes": lambda: [*map(os.unlink, files), (root / "empty").mkdir()],
        "a folder nobody may read": lambda: one.parent.chmod(0),
        "a file nobody may read": lambda: one.chmod(0),
        "a link to itself": lambda: (root / "loop").symlink_to(root),
        "loose pictures beside classes": lambda: picture(root / "loose.png", draw),
        "one picture": lambda: [os.unlink(file) for file in files if file != one],
        "one class": lambda: [os.unlink(file) for file in files if file.parent != one.parent],
        "folders of splits": lambda: [p.rename(p.with_name(n)) for p, n in zip(sorted(root.iterdir()),
                                      ("train", "val", "test"), strict=False)],
        "a train in train": lambda: _below(root, "train/train"),
        "splits below": lambda: _below(root, "train"),
        "hidden folders only": lambda: [p.rename(p.with_name("." + p.name)) for p in sorted(root.iterdir())],
        "nothing at all": lambda: list(map(os.unlink, files)),
        "a name that is no text": lambda: os.rename(one, os.fsencode(one.parent) + b"/\xff\xfe.png"),
        "a file as root": lambda: root.rename(root.with_name("away")) and root.write_text("x"),
        "no root": lambda: root.rename(root.with_name("away")),
        "flat pictures": lambda: [p.rename(root / f"{i}.png") for i, p in enumerate(files)],
    }  # fmt: skip
    name = draw.choice(sorted(changes))
    changes[name]()
    return name


def _below(root: Path, place: str) -> None:
    away = root.with_name("away")
    root.rename(away)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    away.rename(root / place)


# -- ImageNet ---------------------------------------------------------------------------------------------------------
def ilsvrc(root: Path, draw: random.Random) -> str:
    """ImageNet in one of its forms with one thing changed; says which."""
    root.mkdir(parents=True)
    changes: dict[str, Callable[[], object]] = {
        "folders": lambda: None,
        "no val": lambda: _remove(root / "val"),
        "no train": lambda: _remove(root / "train"),
        "another number of classes in val": lambda: _remove(root / "val" / _WNIDS[0]),
        "classes that are no WordNet ids": lambda: (root / "train" / _WNIDS[0]).rename(root / "train" / "tench"),
        "flat val": lambda: [p.rename(root / "val" / p.name) for p in sorted((root / "val").rglob("*.JPEG"))],
        "an empty class folder": lambda: [p.unlink() for p in sorted((root / "val" / _WNIDS[0]).iterdir())],
        "tars": lambda: _tars(root, solution="all"),
        "tars without the csv": lambda: _tars(root, solution="none"),
        "tars with a csv of others": lambda: _tars(root, solution="others"),
        "tars with a csv of other columns": lambda: _tars(root, solution="columns"),
        "tars with an empty csv": lambda: _tars(root, solution="empty"),
        "a csv without tars": lambda: [_tars(root, solution="all"), (root / "ILSVRC2012_img_val.tar").unlink()],
        "a cut tar": lambda: [_tars(root, solution="all"), _cut(root / "ILSVRC2012_img_train.tar")],
        "shards": lambda: _shards(root, classes=True),
        "shards without classes": lambda: _shards(root, classes=False),
    }
    for split in ("train", "val"):
        for wnid in _WNIDS:
            for number in range(4):
                picture(root / split / wnid / f"{wnid}_{split}{number}.JPEG", draw)
    name = draw.choice(sorted(changes))
    changes[name]()
    return name


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def _tars(root: Path, solution: str) -> None:
    """The original tars (one of tars, one flat) in the folders' place, and Kaggle's csv."""
    lines = ["ImageId,PredictionString"]
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in _WNIDS:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path in sorted((root / "train" / wnid).iterdir()):
                    inner.add(path, path.name)
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = len(buffer.getvalue())
            outer.addfile(info, io.BytesIO(buffer.getvalue()))
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in sorted((root / "val").rglob("*.JPEG")):
            tar.add(path, path.name)
            lines.append(f"{path.stem},{path.parent.name} 1 2 3 4")
    _remove(root / "train")
    _remove(root / "val")
    text = {"all": lines, "others": [lines[0], "x,n01440764 1 2 3 4"], "columns": ["a,b", "1,2"], "empty": []}
    if solution in text:
        (root / "LOC_val_solution.csv").write_text("\n".join(text[solution]))


def _shards(root: Path, classes: bool) -> None:
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-000.tar", "w") as tar:
            for number, path in enumerate(sorted((root / split).rglob("*.JPEG"))):
                tar.add(path, f"{number:04d}.jpg")
                if classes:
                    info = tarfile.TarInfo(f"{number:04d}.cls")
                    info.size = 1
                    tar.addfile(info, io.BytesIO(str(number % 3).encode()))
        _remove(root / split)


# -- statistics and samples -------------------------------------------------------------------------------------------
def statistics(folder: Path, draw: random.Random, dim: int) -> tuple[Path, str]:
    """A file that is given as reference statistics or as samples; and its kind."""
    import torch

    folder.mkdir(parents=True)
    npz, pt = folder / "file.npz", folder / "file.pt"
    mu, sigma = np.zeros(dim), np.eye(dim)
    images = np.random.default_rng(draw.randrange(2**32)).integers(0, 255, (24, 28, 28, 3), dtype=np.uint8)
    kinds: dict[str, tuple[Path, Callable[[], object]]] = {
        "statistics": (npz, lambda: np.savez(npz, mu=mu, sigma=sigma)),
        "images": (npz, lambda: np.savez(npz, arr_0=images)),
        "images, compressed": (npz, lambda: np.savez_compressed(npz, arr_0=images)),
        "both": (npz, lambda: np.savez(npz, mu=mu, sigma=sigma, arr_0=images)),
        "no sigma": (npz, lambda: np.savez(npz, mu=mu)),
        "statistics of another network": (npz, lambda: np.savez(npz, mu=np.zeros(7), sigma=np.eye(7))),
        "sigma of another size": (npz, lambda: np.savez(npz, mu=mu, sigma=np.eye(7))),
        "not finite": (npz, lambda: np.savez(npz, mu=mu, sigma=sigma * np.nan)),
        "objects": (npz, lambda: np.savez(npz, arr_0=np.array([{}, 1], dtype=object))),
        "floats": (npz, lambda: np.savez(npz, arr_0=images / 255.0)),
        "channels first": (npz, lambda: np.savez(npz, arr_0=images.transpose(0, 3, 1, 2))),
        "no images": (npz, lambda: np.savez(npz, arr_0=images[:0])),
        "one image": (npz, lambda: np.savez(npz, arr_0=images[:1])),
        "other arrays": (npz, lambda: np.savez(npz, x=mu)),
        "text": (npz, lambda: npz.write_text("<html>404</html>")),
        "empty": (npz, lambda: npz.write_bytes(b"")),
        "tensors": (pt, lambda: torch.save({"mu": torch.zeros(dim), "cov": torch.eye(dim)}, pt)),
        "tensors of other names": (pt, lambda: torch.save({"mean": torch.zeros(dim)}, pt)),
        "a pickle": (pt, lambda: pt.write_bytes(pickle.dumps({"mu": mu, "cov": sigma}))),
        "tensors and a path": (pt, lambda: torch.save({"mu": torch.zeros(dim), "cov": Path("x")}, pt)),
        "an empty folder": (folder / "sub", (folder / "sub").mkdir),
        "a folder of one picture": (folder / "sub", lambda: picture(folder / "sub" / "a.png", draw)),
        "a folder of pictures": (folder / "sub", lambda: _pictures(folder / "sub", draw, 0)),
        "pictures of several sizes": (folder / "sub", lambda: _pictures(folder / "sub", draw, 1)),
    }  # fmt: skip
    name = draw.choice(sorted(kinds))
    path, make = kinds[name]
    make()
    return path, name


def _pictures(folder: Path, draw: random.Random, growth: int) -> None:
    for number in range(20):
        picture(folder / f"{number}.png", draw, size=(20 + growth * number, 20))
