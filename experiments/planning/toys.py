"""The files that a toy reads (`toy=true`): a few pictures in the dataset's own layout, random weights where needed.

Made once in `<store>-toy/.toy/`, before anything is digested; a finished file is never written again.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config.checker import StepRequest
from experiments.config.toy import rules
from experiments.store.typed_json import Options
from maskgit_core.content import resolve
from maskgit_core.errors import DataError

#: Splits are all taken, however few class folders are.
_SPLITS = ("train", "val", "test", "validation")


def make_all(configs: Sequence[Options], requests: Sequence[Mapping[str, StepRequest]]) -> list[str]:
    """The lines of `make` for every point of a request, each once; none where no toy is asked for."""
    pairs = [(config["toy"], steps) for config, steps in zip(configs, requests, strict=True) if "toy" in config]
    return list(dict.fromkeys(line for toy, steps in pairs for line in make(toy, steps.values())))


def make(toy: Options, requests: Iterable[StepRequest]) -> list[str]:
    """Makes what is missing, and says in a few lines what takes the place of what.

    Args:
        toy: `toy` of a config that `experiments.config.toy.small` made.
        requests: the checked steps of that config.
    """
    told = []
    for place, origin in toy["origins"].items():
        made_up = _make_once(Path(place), partial(write_pictures, **origin))
        told.append(f"pictures of {origin['name']}: {made_up or _origin(Path(place))}")
    by_weights = {value: request for request in requests for value in request.weights.values()}
    for place, named in toy["made"].items():
        if place in by_weights:
            _make_once(Path(place), partial(write_weights, named=named, request=by_weights[place]))
    if toy["made"]:
        told.append("random weights in the place of " + ", ".join(dict.fromkeys(toy["made"].values())))
    for first in dict.fromkeys(toy["left_out"].values()):
        names = ", ".join(name for name, other in toy["left_out"].items() if other == first)
        told.append(f"left out, as only their weights differ from those of {first}: {names}")
    return [f"toy: {line}" for line in dict.fromkeys(told)]


def _make_once(place: Path, write: Callable[[Path], str | None]) -> str | None:
    """Writes beside and renames, so that two processes and a kill leave whole files."""
    if place.exists():
        return None
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        told = write(aside)
        if told is not None and aside.is_dir():
            (aside / ".origin").write_text(told)
        if not place.exists():
            os.rename(aside, place)
        return told
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)


def _origin(place: Path) -> str:
    note = place / ".origin"
    told = note.read_text(errors="replace") if note.is_file() else ""
    return " ".join(told.split())[:300] or str(place)


# -- pictures ---------------------------------------------------------------------------------------------------------
def write_pictures(target: Path, *, name: str, root: Any, split: str) -> str:
    """A small dataset in the layout of `name`: of the pictures at `root`, else made up; says which."""
    folders, files = int(rules()["pictures"]["folders"]), int(rules()["pictures"]["files"])
    try:
        source: Path | None = resolve(root) if root not in (None, "???") else None
    except DataError:
        source = None
    if name == "fashion_mnist":
        source = source if source is not None and _idx(source) is not None else resolve("bundled:fashion_mnist_subset")
        write_idx(source, target, 40, 20)
        return f"the first 40 + 20 of {source}"
    target.mkdir(parents=True)
    if name == "cifar10":
        folders, files = 10, 2  # all of its classes must be there
    if source is not None and source.is_dir() and _copy_some(source, target, folders, files):
        _repeat(target, int(rules()["pictures"]["at_least"]))
        return f"some of {source}"
    where = "" if root in (None, "???") else f" ({root} is not there, or not in folders)"
    if name == "imagenet":
        for part in ("train", "val"):
            _make_up(target / part, [f"n{10_000_000 + i}" for i in range(folders)], files)
    elif name == "cifar10":
        from maskgit_core.datasets.cifar10 import CLASS_NAMES

        for part in ("train", "test"):
            _make_up(target / part, CLASS_NAMES, files)
    elif name == "image_folder":
        _make_up(target / split, [f"class_{i}" for i in range(folders)], files)
    else:
        _make_up(target, [""], folders * files)
    return f"made up{where}"


def _copy_some(source: Path, target: Path, folders: int, files: int, depth: int = 0) -> int:
    """Copies the first pictures of the first folders at every level; how many there were."""
    from maskgit_core.images.pictures import EXTENSIONS

    entries = sorted((e for e in os.scandir(source) if not e.name.startswith(".")), key=lambda e: e.name)
    inner = [e for e in entries if e.is_dir()]
    pictures = [e for e in entries if e.name.lower().endswith(EXTENSIONS) and e.is_file()]
    inner = [e for e in inner if e.name in _SPLITS] or inner[:folders]
    limit = files if inner or depth else folders * files
    for entry in pictures[:limit]:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.path, target / entry.name)
    return len(pictures[:limit]) + sum(
        _copy_some(Path(e.path), target / e.name, folders, files, depth + 1) for e in inner if depth < 4
    )


def _repeat(folder: Path, at_least: int) -> None:
    """Copies a split's pictures again, under further names, until it has so many."""
    from maskgit_core.datasets.image_folder import class_folders, pictures_below

    splits = [folder / name for name in class_folders(folder) if name in _SPLITS]
    for split in splits or [folder]:
        names = list(pictures_below(split))
        for number in range(len(names), at_least if names else 0):
            source = split / names[number % len(names)]
            shutil.copyfile(source, source.with_name(f"{source.stem}_again{number:03d}{source.suffix}"))


def _make_up(folder: Path, classes: list[str], count: int) -> None:
    """Waves with noise: a colour for each class, so that there is something to learn."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:40, 0:36]
    draws = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            waves = np.sin(rows / (3 + number) + index) + np.cos(columns / (4 + index))
            channels = [waves * (1 + (number + c) % 3) + draws.normal(size=waves.shape) / 2 for c in range(3)]
            pixels = (np.stack(channels, axis=-1) * 30 + 128).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name or 'picture'}_{index:05d}.JPEG", quality=90)


def _idx(source: Path) -> Path | None:
    """The folder below `source` that holds Fashion-MNIST's idx files."""
    places = (source, source / "FashionMNIST" / "raw", source / "raw")
    return next((p for p in places if list(p.glob("t10k-labels-idx1-ubyte*"))), None)


def write_idx(source: Path, target: Path, num_train: int, num_test: int) -> None:
    """The first so many pictures of each split of Fashion-MNIST, as idx files."""
    folder = _idx(source)
    assert folder is not None
    target.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        for name, item in ((f"{prefix}-images-idx3-ubyte", 28 * 28), (f"{prefix}-labels-idx1-ubyte", 1)):
            packed, begin = folder / f"{name}.gz", 16 if item > 1 else 8
            data = gzip.decompress(packed.read_bytes()) if packed.is_file() else (folder / name).read_bytes()
            header = data[:4] + struct.pack(">I", count) + data[8:begin]
            (target / name).write_bytes(header + data[begin : begin + count * item])


# -- weights ----------------------------------------------------------------------------------------------------------
def write_weights(target: Path, named: str, request: StepRequest) -> None:
    """Random weights in the place of `named`, as the step that reads them wants them."""
    if request.stage == "import_model":
        _write_transformer(target, request)
    elif named.startswith("lpips/"):
        _write_backbone(target, "vgg" if named == "lpips/vgg16" else "alex")
    else:
        from maskgit_core.weights.random_weights import write_tokenizer

        write_tokenizer(named, target, small=True)


def _write_transformer(target: Path, request: StepRequest) -> None:
    import torch

    from experiments.config.specs import ModelSpec
    from maskgit_core.training.checkpoints import save_tensors

    config = request.config
    model = dict(config["model"])
    spec = ModelSpec(name=model.pop("name"), options=model, module=request.modules["model"])
    facts = {
        "codebook_size": config["codebook_size"],
        "num_tokens": config["grid_height"] * config["grid_width"],
        "num_classes": config["num_classes"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = spec.build(**facts).state_dict()
    save_tensors(target, {name: tensor.clone() for name, tensor in state.items()}, {})  # tied ones on their own


def _write_backbone(target: Path, net: str) -> None:
    import torch

    from maskgit_core.metrics.lpips import Network
    from maskgit_core.weights.random_weights import random_state

    features = Network(net).features.state_dict()  # type: ignore[arg-type]
    torch.save(random_state({f"features.{name}": tuple(t.shape) for name, t in features.items()}), target)
