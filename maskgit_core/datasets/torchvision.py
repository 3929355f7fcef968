"""torchvision's datasets by name: CIFAR-10, CIFAR-100, MNIST and its kin, SVHN, STL-10, CelebA, Flowers-102, others.

A local copy in torchvision's layout is read. To download one, verified by torchvision's checksums (on a machine with a
network): `python -m maskgit_core.datasets.torchvision CIFAR10 data/torchvision/CIFAR10`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample
from maskgit_core.errors import DataError, MaskgitError
from maskgit_core.hints import Content, Range

Which = Literal[
    "CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "SVHN", "STL10", "CelebA", "Flowers102",
    "OxfordIIITPet", "Food101", "DTD", "FGVCAircraft",
]  # fmt: skip
#: Set -> its splits as torchvision calls them; (True, False) where it asks `train=`.
_SPLIT_NAMES: dict[str, dict[str, Any]] = {
    **{name: {"train": True, "test": False} for name in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")},
    "SVHN": {name: name for name in ("train", "test", "extra")},
    "STL10": {name: name for name in ("train", "test", "unlabeled", "train+unlabeled")},
    "CelebA": {"train": "train", "val": "valid", "test": "test", "all": "all"},
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "Food101": {"train": "train", "test": "test"},
    **{name: {"train": "train", "val": "val", "test": "test"} for name in ("Flowers102", "DTD", "FGVCAircraft")},
}
#: Rows and columns of the square that is cut from CelebA's aligned pictures (178 x 218): 128 pixels around (121, 89),
#: as Progressive GAN cut it (tkarras/progressive_growing_of_gans and NVlabs/stylegan, dataset_tool.py: create_celeba,
#: cx=89, cy=121, each from - 64 to + 64), and DDIM after it (ermongroup/ddim, datasets).
ALIGNED = (57, 185, 25, 153)


class Dataset:
    """One of torchvision's datasets, in its order.

    Args:
        root: the folder of this one set, as torchvision's `root`, or a list of which the first that exists counts.
        which: torchvision's name of the set.
        split: `train`, `test`, and what else the set has (`val`, `all`, `extra`, `unlabeled`).
        image_size: side after crop and resize.
        crop: `center` (shorter side resized, the middle cut out), `none` (resized to a square), `aligned` (of CelebA:
            128 pixels around the face, then resized); None: `aligned` for CelebA, `center` for the others.
        channels: 3, or 1 for grey.

    Raises:
        DataError: the set is not in the folder, or has no such split or crop.
    """

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        which: Which = "CIFAR10",
        split: str = "train",
        image_size: Annotated[int, Range(8, 4096)] = 32,
        crop: Literal["center", "none", "aligned"] | None = None,
        channels: Literal[1, 3] = 3,
    ) -> None:
        self.folder, self.which, self.split = resolve(root), which, split
        self.image_size, self.channels = image_size, channels
        self.crop = crop or ("aligned" if which == "CelebA" else "center")
        if self.crop == "aligned" and which != "CelebA":
            raise DataError(f"crop: aligned is of CelebA's aligned pictures, and {which} has none; use center or none")
        self._data = opened(self.folder, which, split)
        names = getattr(self._data, "classes", None) if which != "CelebA" else None
        self._labels = None if which == "CelebA" else labels_of(self._data)
        count = 0 if self._labels is None else max(self._labels, default=-1) + 1
        self.class_names = [str(name) for name in names] if names else [str(label) for label in range(count)]
        self.num_classes: int | None = len(self.class_names) or None

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        from maskgit_core.images.pictures import decode
        from maskgit_core.images.transforms import IndexCrop

        try:
            pixels = decode(self._data[index][0], self.channels)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self.folder}: picture {index} cannot be read ({error}); get the set again") from error
        if self.crop == "aligned":
            top, bottom, left, right = ALIGNED
            pixels = pixels[top:bottom, left:right]
        kind: Literal["none", "center"] = "none" if self.crop == "none" else "center"
        pixels, _ = IndexCrop(kind, self.image_size)(pixels, index)
        return Sample(f"{self.split}-{index:06d}", pixels, -1 if self._labels is None else self._labels[index])

    @property
    def labels(self) -> list[int]:
        """The class of every picture, -1 where there are none."""
        return [-1] * len(self) if self._labels is None else self._labels

    def check(self) -> None:
        """Reads the first and the last picture.

        Raises:
            DataError: one cannot be read.
        """
        for index in {0, len(self) - 1}:
            self[index]


def opened(folder: Path, which: str, split: str, download: bool = False) -> Any:
    """torchvision's own object for a split.

    Raises:
        DataError: no such split; the files are missing or damaged; a package that torchvision needs is missing.
    """
    import torchvision.datasets as sets

    splits = _SPLIT_NAMES[which]
    if split not in splits:
        raise DataError(f"split: {which} has no {split!r}; one of [{', '.join(splits)}]")
    value = splits[split]
    options = {"train": value} if isinstance(value, bool) else {"split": value}
    try:
        return getattr(sets, which)(str(folder), download=download, **options)
    except ModuleNotFoundError as error:
        raise DataError(f"{folder}: torchvision's {which} needs the package {error.name}; install it") from None
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{folder}: torchvision's {which} is not whole there ({reason}); download it with "
            f"`python -m maskgit_core.datasets.torchvision {which} {folder}`"
        ) from None


def labels_of(data: Any) -> list[int]:
    """The class of every picture, without reading pictures."""
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(data, name, None)) is not None:
            return [int(label) for label in labels]
    raise DataError(f"{type(data).__name__}: tells no classes; use another set")


def main(arguments: list[str]) -> int:
    """Downloads all splits of a set that a training and its test need."""
    if len(arguments) != 2 or arguments[0] not in _SPLIT_NAMES:
        print(f"write NAME FOLDER; NAME is one of [{', '.join(_SPLIT_NAMES)}]", file=sys.stderr)
        return 2
    which, folder = arguments[0], Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for split in ("train", "test"):
            print(f"{folder}: {len(opened(folder, which, split, download=True)):,} pictures in {which}'s split {split}")
    except MaskgitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
