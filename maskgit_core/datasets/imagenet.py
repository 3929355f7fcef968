"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation pictures in 1,000 classes.

Read in the three forms it is kept in: class folders (`train/n01440764/...`), the original tars
(`ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar`), and WebDataset tars with `.cls` members (`*train*.tar`,
`*val*.tar`). The class of a picture is its WordNet id's place in the sorted ids: the order that published models use.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample
from maskgit_core.datasets.image_folder import class_folders, pictures_below
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Neutral, Range
from maskgit_core.images.pictures import EXTENSIONS, check_headers, decode, open_picture
from maskgit_core.images.tar_index import Member, index_of, read_member
from maskgit_core.images.transforms import IndexCrop

COUNTS = {"train": 1_281_167, "val": 50_000}
NUM_CLASSES = 1000
_TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_SOLUTION = "LOC_val_solution.csv"


class _Entry(NamedTuple):
    """A picture: its key, its class, and its file (with its place there, for tars)."""

    key: str
    label: int
    file: Path
    member: Member | None


class Dataset:
    """ImageNet's pictures in the order of their class and name (folders, original tars) or of the tars (WebDataset).

    Args:
        root: the folder, or a list of which the first that exists counts.
        split: `train` or `val`.
        image_size: side after crop and resize.
        crop: ADM's centre crop, a plain centre crop, none, a random resized crop or ADM's random crop
            (`images/transforms.py`).
        crop_seed, crop_scale: of the random crops.
        partial: allows other counts than ILSVRC 2012's, for trials; class ids are then those that are there.

    Raises:
        DataError: no form of the split is found, or classes or labels do not fit.
    """

    channels = 3

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        split: Literal["train", "val"] = "train",
        image_size: Annotated[int, Range(8, 4096)] = 256,
        crop: Literal["adm", "adm_fast", "center", "none", "random_resized", "adm_random"] = "adm",
        partial: bool = False,
        crop_seed: Annotated[int, Range(0, None), Neutral(0)] = 0,
        crop_scale: Annotated[tuple[float, float], Neutral((0.8, 1.0))] = (0.8, 1.0),
    ) -> None:
        if split not in COUNTS:  # stages that choose the split themselves come past the checker
            raise DataError(f"split: ImageNet has no {split!r} with classes; one of [{', '.join(COUNTS)}]")
        self.folder, self.split = resolve(root), split
        self.image_size, self.crop, self.partial = image_size, crop, partial
        self._cut = IndexCrop(crop, image_size, seed=crop_seed, scale=(crop_scale[0], crop_scale[1]))
        self.form, self.class_names, self._entries = _read_split(self.folder, split)
        self.num_classes: int | None = len(self.class_names) if partial else NUM_CLASSES
        if not partial and len(self.class_names) != NUM_CLASSES:
            raise DataError(
                f"{self.folder}: {len(self.class_names)} classes in split {split}, ILSVRC 2012 has {NUM_CLASSES}; "
                "complete it, set partial=true, or read it as image_folder"
            )
        odd = [name for name in self.class_names if not re.fullmatch(r"n\d{8}", name)]
        if not partial and self.form != "webdataset" and odd:
            raise DataError(
                f"{self.folder}: class {odd[0]} is no WordNet id (n01440764), so labels would not be the standard "
                "ones; rename the folders, set partial=true, or read it as image_folder"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        entry = self._entries[index]
        source = entry.file if entry.member is None else io.BytesIO(read_member(entry.file, entry.member))
        try:
            with open_picture(source) as picture:
                pixels = decode(picture, 3)
        except (OSError, ValueError) as error:
            raise DataError(f"{entry.file}: {entry.key} cannot be decoded ({error}); get it again") from error
        pixels, box = self._cut(pixels, index)
        return Sample(entry.key, pixels, entry.label, box)

    @property
    def labels(self) -> list[int]:
        """The class of every picture."""
        return [entry.label for entry in self._entries]

    def check(self) -> None:
        """Compares counts with ILSVRC 2012's and, for folders, reads every picture's header.

        Raises:
            DataError: how many pictures and classes there are, how many there should be, which classes fall short.
        """
        self.check_count()
        if self.form == "folders":
            check_headers(self.folder / self.split, [entry.key for entry in self._entries])

    def check_count(self) -> None:
        """Compares counts with ILSVRC 2012's.

        Raises:
            DataError: how many pictures and classes there are, how many there should be, which classes fall short.
        """
        wanted = COUNTS[self.split]
        if not self.partial and len(self) != wanted:
            per_class = Counter(entry.label for entry in self._entries)
            full = 50 if self.split == "val" else 732  # no training class has fewer
            short = [f"{name} ({per_class[i]})" for i, name in enumerate(self.class_names) if per_class[i] < full]
            shown = ", ".join(short[:5]) + (", ..." if len(short) > 5 else "")
            raise DataError(
                f"{self.folder}: split {self.split} has {len(self):,} pictures, ILSVRC 2012 has {wanted:,}; "
                f"{len(short)} classes fall short: {shown}; complete it or set partial=true"
            )


def count_pictures(root: str, options: Mapping[str, Any]) -> int | None:
    """The number of pictures of a dataset with these options; of tars ILSVRC 2012's, as an index of them takes minutes.

    Raises:
        DataError: as of the dataset; None: of tars in parts, which the step itself counts.
    """
    split = str(options.get("split", "train"))
    in_folders = (Path(root) / split).is_dir() and class_folders(Path(root) / split)
    if split in COUNTS and not in_folders and any(Path(root).rglob("*.tar")):
        return None if options.get("partial") else COUNTS[split]
    pictures = Dataset(root=root, **options)
    pictures.check_count()
    return len(pictures)


def _read_split(root: Path, split: str) -> tuple[str, list[str], list[_Entry]]:
    """The form found, the class names, and the pictures."""
    if (root / split).is_dir() and class_folders(root / split):
        return "folders", *_from_folders(root / split)
    if (root / _TARS[split]).is_file():
        return "tars", *(_from_train_tar(root) if split == "train" else _from_val_tar(root))
    shards = sorted(p for p in root.glob("*.tar") if re.search(rf"(^|[-_.]){split}", p.name))
    shards = shards or sorted((root / split).glob("*.tar"))
    if shards:
        return "webdataset", *_from_shards(root, shards)
    raise DataError(
        f"{root}: no split {split} here; looked for {split}/<class folders>, {_TARS[split]} and *{split}*.tar"
    )


def _from_folders(folder: Path) -> tuple[list[str], list[_Entry]]:
    names = class_folders(folder)
    return names, [
        _Entry(key, label, folder / key, None)
        for label, name in enumerate(names)
        for key in pictures_below(folder / name, f"{name}/")
    ]


def _from_train_tar(root: Path) -> tuple[list[str], list[_Entry]]:
    """A tar of a thousand tars, one a class."""
    path = root / _TARS["train"]
    members = sorted(index_of(path))
    names = sorted({member.name.split(".tar/")[0] for member in members})
    labels = {name: label for label, name in enumerate(names)}
    return names, [_Entry(m.name, labels[m.name.split(".tar/")[0]], path, m) for m in members]


def _from_val_tar(root: Path) -> tuple[list[str], list[_Entry]]:
    """A flat tar; the classes are in Kaggle's `LOC_val_solution.csv` beside it."""
    path, solution = root / _TARS["val"], root / _SOLUTION
    if not solution.is_file():
        raise DataError(
            f"{solution}: missing; the validation tar holds no classes. Put Kaggle's {_SOLUTION} beside it, "
            "or sort the pictures into val/<class folders>"
        )
    with solution.open(newline="") as file:
        wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    names = sorted(set(wnids.values()))
    labels = {name: label for label, name in enumerate(names)}
    entries = []
    for member in sorted(index_of(path)):
        key = Path(member.name).stem
        if key not in wnids:
            raise DataError(f"{solution}: has no row for {key} of {path.name}; get the file again")
        entries.append(_Entry(key, labels[wnids[key]], path, member))
    return names, entries


def _from_shards(root: Path, shards: Sequence[Path]) -> tuple[list[str], list[_Entry]]:
    """WebDataset: members that share a key up to the first dot of their base name belong together."""
    entries = []
    for path in shards:
        pictures: dict[str, Member] = {}
        classes: dict[str, int] = {}
        for member in index_of(path):
            folder, _, base = member.name.rpartition("/")
            key, _, ending = base.partition(".")
            key = f"{folder}/{key}" if folder else key
            if f".{ending.lower()}" in EXTENSIONS:
                pictures[key] = member
            elif ending == "cls":
                classes[key] = _class_of(path, member)
        for key, member in pictures.items():
            if key not in classes:
                raise DataError(f"{path}: {member.name} has no .cls beside it; make the shards with classes")
            entries.append(_Entry(key, classes[key], path, member))
    if not entries:
        raise DataError(f"{root}: {len(shards)} tars hold no pictures; set root to where they are")
    return [str(label) for label in range(max(entry.label for entry in entries) + 1)], entries


def _class_of(path: Path, member: Member) -> int:
    text = read_member(path, member).decode(errors="replace").strip()
    if not text.isdigit():
        raise DataError(f"{path}: {member.name} holds {text[:20]!r}; a class is a whole number from 0")
    return int(text)
