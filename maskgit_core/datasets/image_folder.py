"""Any folder of pictures: one folder a class (sorted names are the classes), or flat pictures without classes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Neutral, Range
from maskgit_core.images.pictures import EXTENSIONS, check_headers, read_picture, undecodable
from maskgit_core.images.transforms import IndexCrop

#: Names of folders that are splits of a dataset.
_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")


class Dataset:
    """Pictures below a folder, in the order of their sorted relative names.

    Args:
        root: the folder, or a list of which the first that exists counts.
        split: name of a folder below `root` to read instead (`train`, `val`); empty: `root` itself.
        image_size: side after crop and resize.
        crop: `adm` (ADM's centre crop: box halvings, then bicubic), `adm_fast` (the same with PyTorch's bicubic filter,
            twice as fast), `center` (resize the shorter side, cut the middle), `none` (resize to a square whatever the
            aspect ratio), `random_resized` (an Inception crop, the same one whenever an index is read; its box is
            told).
        filter_name: PIL filter of all crops but ADM's.
        crop_seed: of the draws of `random_resized` and of `adm_random`, ADM's random crop. crop_scale: the share of the
            area that the first covers, of the shorter side that the second does.
        channels: 3 (RGB) or 1 (grey).
        upright: turn pictures as their EXIF orientation says (published protocols do not).
        damaged: pictures that cannot be decoded are an error (`refuse`), or are left out, counted and named
            (`leave_out`; every file is then decoded once before work).

    Raises:
        DataError: the folder is missing, holds no pictures, or holds splits where classes should be.
    """

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        split: str = "",
        image_size: Annotated[int, Range(8, 4096)] = 256,
        crop: Literal["adm", "adm_fast", "center", "none", "random_resized", "adm_random"] = "adm",
        filter_name: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic",
        channels: Literal[1, 3] = 3,
        crop_seed: Annotated[int, Range(0, None), Neutral(0)] = 0,
        crop_scale: Annotated[tuple[float, float], Neutral((0.8, 1.0))] = (0.8, 1.0),
        upright: Annotated[bool, Neutral(False)] = False,
        damaged: Annotated[Literal["refuse", "leave_out"], Neutral("refuse")] = "refuse",
    ) -> None:
        self.folder = split_folder(resolve(root), split)
        self.image_size, self.crop, self.filter_name, self.channels = image_size, crop, filter_name, channels
        self.upright, self.left_out = upright, list[str]()
        self._cut = IndexCrop(crop, image_size, filter_name, crop_seed, (crop_scale[0], crop_scale[1]))
        self.class_names = class_folders(self.folder)
        refuse_splits(self.folder, self.class_names)
        self.num_classes: int | None = len(self.class_names) or None
        self._files = list(_files(self.folder, self.class_names))
        if not self._files:
            endings = " ".join(EXTENSIONS)
            raise DataError(f"{self.folder}: no pictures here (looked for {endings}); set root to where they are")
        if damaged == "leave_out":
            self._leave_out()

    def _leave_out(self) -> None:
        """Forgets the pictures that cannot be decoded, and says so on stderr."""
        names = [name for name, _ in self._files]
        self.left_out = undecodable(self.folder, names)
        if not self.left_out:
            return
        broken = set(self.left_out)
        self._files = [(name, label) for name, label in self._files if name not in broken]
        shown = ", ".join(self.left_out[:5]) + (", ..." if len(broken) > 5 else "")
        if not self._files:
            raise DataError(f"{self.folder}: none of its {len(broken)} pictures can be decoded: {shown}; replace them")
        said = f"{len(broken)} of {len(names)} pictures cannot be decoded and are left out: {shown}"
        print(f"warning: {self.folder}: {said}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        name, label = self._files[index]
        image, box = self._cut(read_picture(self.folder / name, self.channels, self.upright), index)
        return Sample(name, image, label, box)

    @property
    def files(self) -> list[tuple[str, int]]:
        """Relative name and class of every picture."""
        return list(self._files)

    @property
    def labels(self) -> list[int]:
        """The class of every picture, -1 where there are no classes."""
        return [label for _, label in self._files]

    def check(self, num_threads: int = 8) -> None:
        """Reads every picture's header (not its pixels) and fails once, before work, with all that cannot be read.

        Raises:
            DataError: the number of unreadable pictures and the first of their names.
        """
        check_headers(self.folder, [name for name, _ in self._files], num_threads)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders below `folder` that are not hidden."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def refuse_splits(folder: Path, class_names: list[str]) -> None:
    """Refuses `train/` and `val/` as classes: a folder above the splits was given.

    Raises:
        DataError: says how to choose one of them.
    """
    splits = [name for name in class_names if name.lower() in _SPLIT_NAMES]
    if len(splits) > 1 or (splits and splits == class_names):  # a single `train` among others may be the vehicle
        raise DataError(
            f"{folder}: its folders [{', '.join(splits)}] are splits, not classes; set the dataset's root to "
            f"{folder / splits[0]}, or its split to {splits[0]}"
        )


def count_classes(root: Path, split: str = "") -> int | None:
    """The number of classes of a folder of pictures; None without class folders."""
    return len(class_folders(split_folder(root, split))) or None


def count_pictures(root: str, options: Mapping[str, Any]) -> int:
    """The number of pictures of a dataset with these options.

    Raises:
        DataError: as of the dataset.
    """
    return len(Dataset(root=root, **{**options, "damaged": "refuse"}))


def split_folder(root: Path, split: str) -> Path:
    folder = root / split if split else root
    if Path(split).is_absolute() or ".." in Path(split).parts:
        raise DataError(f"{root}: split {split!r} leaves the folder; name a folder below it")
    if not folder.is_dir():
        there = ", ".join(class_folders(root)[:8]) if root.is_dir() else "it is not a folder"
        raise DataError(f"{folder}: there is no such folder; below {root}: [{there}]")
    return folder


def _files(folder: Path, class_names: list[str]) -> Iterator[tuple[str, int]]:
    """Relative name and label of every picture; class folders may hold folders."""
    if not class_names:
        for name in _pictures(folder):
            yield name, -1
    for label, class_name in enumerate(class_names):
        for name in pictures_below(folder / class_name, f"{class_name}/"):
            yield name, label


def pictures_below(folder: Path, prefix: str = "") -> Iterator[str]:
    """Relative names of the pictures in `folder`, then of those in the folders below it, each level sorted."""
    for name in _pictures(folder):
        yield f"{prefix}{name}"
    for inner in class_folders(folder):
        yield from pictures_below(folder / inner, f"{prefix}{inner}/")


def _pictures(folder: Path) -> list[str]:
    return sorted(
        e.name
        for e in os.scandir(folder)
        if not e.name.startswith(".") and e.name.lower().endswith(EXTENSIONS) and e.is_file()
    )
