"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): 70,000 photos of garments, 28 x 28 grey, 10 classes, MIT.

Reads the idx files themselves, packed or not, as the authors, Debian (`dataset-fashion-mnist`) and torchvision lay
them out, and the subset that comes with this package (`bundled:fashion_mnist_subset`).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Range

if TYPE_CHECKING:
    import numpy as np

CLASS_NAMES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
NUM_CLASSES = 10
_PREFIX = {"train": "train", "test": "t10k"}
_SIDE = 28


class Dataset:
    """Fashion-MNIST in the order of its files.

    Args:
        root: folder of the idx files (also torchvision's root, above `FashionMNIST/raw`), or a list of which the first
            that exists counts, or `bundled:fashion_mnist_subset`.
        split: `train` or `test`.
        image_size: side in pixels; other than 28 resizes with PIL's bicubic filter.
        channels: 1, or 3 for grey as RGB (networks made for colour).

    Raises:
        DataError: a file is missing or is not a whole idx file.
    """

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        split: Literal["train", "test"] = "train",
        image_size: Annotated[int, Range(8, 1024)] = 28,
        channels: Literal[1, 3] = 1,
    ) -> None:
        self.folder = _find(resolve(root), _PREFIX[split])
        self.split, self.image_size, self.channels = split, image_size, channels
        self.class_names = list(CLASS_NAMES)
        self.num_classes: int | None = NUM_CLASSES
        self._labels = _read(self.folder, f"{_PREFIX[split]}-labels-idx1-ubyte", ())
        self._images: np.ndarray | None = None
        if self._labels.size and int(self._labels.max()) >= NUM_CLASSES:
            raise DataError(f"{self.folder}: a label above 9 was found; these are not Fashion-MNIST's files")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        image = self.images[index][:, :, None]
        if self.image_size != _SIDE:
            from maskgit_core.images.transforms import resize

            image = resize(image, self.image_size)
        if self.channels == 3:
            image = image.repeat(3, axis=2)
        return Sample(f"{self.split}-{index:05d}", image, int(self._labels[index]))

    def check(self) -> None:
        """Reads all pixels, so that a damaged file is known before work begins.

        Raises:
            DataError: the images' file is missing, damaged or does not match the labels.
        """
        _ = self.images

    @property
    def images(self) -> np.ndarray:
        """All pixels as stored: uint8 NHW; read at first use."""
        if self._images is None:
            images = _read(self.folder, f"{_PREFIX[self.split]}-images-idx3-ubyte", (_SIDE, _SIDE))
            if len(images) != len(self):
                raise DataError(
                    f"{self.folder}: {len(images)} images but {len(self)} labels in split {self.split}; get it again"
                )
            self._images = images
        return self._images

    @property
    def labels(self) -> np.ndarray:
        """All labels: uint8 N."""
        return self._labels


def count_pictures(root: str, options: Mapping[str, Any]) -> int:
    """The number of pictures of a dataset with these options, as the header of its labels tells.

    Raises:
        DataError: no such split, or a file that is missing or damaged.
    """
    split = str(options.get("split", "train"))
    if split not in _PREFIX:
        raise DataError(f"split: Fashion-MNIST has no {split!r}; one of [{', '.join(_PREFIX)}]")
    path = _find(Path(root), _PREFIX[split]) / f"{_PREFIX[split]}-labels-idx1-ubyte"
    packed = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") if path.is_file() else gzip.open(packed) as file:
            header = file.read(8)
    except (OSError, EOFError) as error:
        raise DataError(f"{packed}: cannot be read ({error}); get the dataset again") from error
    if len(header) < 8 or header[:4] != bytes((0, 0, 8, 1)):
        raise DataError(f"{path}: not an idx file of bytes with 1 dimension(s); get the dataset again")
    return int.from_bytes(header[4:], "big")


def _find(root: Path, prefix: str) -> Path:
    """The folder below `root` that holds the split's idx files."""
    name = f"{prefix}-images-idx3-ubyte"
    for folder in (root, root / "FashionMNIST" / "raw", root / "raw"):
        if (folder / name).is_file() or (folder / f"{name}.gz").is_file():
            return folder
    raise DataError(
        f"{root}: no {name}[.gz] here; install Debian's dataset-fashion-mnist, run tools/fetch_fashion_mnist.py, "
        "or set root to bundled:fashion_mnist_subset"
    )


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an idx file (big-endian header: magic 0x0000 08 rank, then one size a dimension)."""
    import numpy as np

    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise DataError(f"{folder / name}: missing; get the dataset again") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the dataset again") from error
    rank = 1 + len(shape)
    if len(data) < 4 + 4 * rank or data[:4] != bytes((0, 0, 8, rank)):
        raise DataError(f"{path}: not an idx file of bytes with {rank} dimension(s); get the dataset again")
    sizes = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    count = 1
    for size in sizes:
        count *= size
    if sizes[1:] != shape or len(data) - 4 - 4 * rank != count:
        raise DataError(
            f"{path}: its header says {sizes}, its length {len(data)} bytes; expected items of {shape}; get it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(sizes)
