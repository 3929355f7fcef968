"""CIFAR-10 (Krizhevsky 2009): 60,000 colour photos of 32 x 32 pixels, 10 classes.

Reads what torchvision unpacks (`cifar-10-batches-py`), the binary version (`cifar-10-batches-bin`), or picture files in
`train/<class>/` and `test/<class>/`. Files that were encoded again as JPEG are other pictures: a score over them is not
one over CIFAR-10, and their digests differ.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets import Sample, image_folder
from maskgit_core.errors import DataError
from maskgit_core.hints import Content

if TYPE_CHECKING:
    import numpy as np

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NUM_CLASSES = 10
IMAGE_SIZE = 32
_PARTS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_BYTES = 3 * IMAGE_SIZE * IMAGE_SIZE


class Dataset:
    """CIFAR-10 in the order of its batches; of picture files, the classes take turns, so a first part is balanced.

    Args:
        root: the folder above `cifar-10-batches-py`, `cifar-10-batches-bin` or `train` and `test` (or one of the first
            two itself), or a list of which the first that exists counts.
        split: `train` or `test`.

    Raises:
        DataError: nothing of the three is there, or a file is damaged.
    """

    def __init__(self, *, root: Content[str | list[str]], split: Literal["train", "test"] = "train") -> None:
        self.folder, self.split = resolve(root), split
        self.image_size, self.channels = IMAGE_SIZE, 3
        self.class_names = list(CLASS_NAMES)
        self.num_classes: int | None = NUM_CLASSES
        self._pixels: np.ndarray | None = None
        self._files: image_folder.Dataset | None = None
        read = _reader(self.folder)
        if read is None:
            self._open_files()
        else:
            self._pixels, self.labels = _joined([read(name) for name in _PARTS[split]])
            self._order: list[int] = list(range(len(self.labels)))

    def _open_files(self) -> None:
        files = image_folder.Dataset(root=str(self.folder), split=self.split, image_size=IMAGE_SIZE, crop="center")
        if files.class_names != sorted(CLASS_NAMES):
            raise DataError(
                f"{files.folder}: its class folders are {files.class_names[:10]}; CIFAR-10's are {CLASS_NAMES}; use "
                "dataset=image_folder for other pictures"
            )
        by_class: list[list[int]] = [[] for _ in CLASS_NAMES]
        labels = files.labels  # a new list each time it is asked for
        for number, label in enumerate(labels):
            by_class[label].append(number)
        longest = max(map(len, by_class))
        self._order = [own[turn] for turn in range(longest) for own in by_class if turn < len(own)]
        self._files, self.labels = files, [labels[number] for number in self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        if self._files is not None:
            return self._files[self._order[index]]
        assert self._pixels is not None
        return Sample(f"{self.split}-{index:05d}", self._pixels[index], self.labels[index])

    def check(self) -> None:
        """Reads the headers of picture files; the batches are read when the dataset is opened.

        Raises:
            DataError: pictures that cannot be read.
        """
        if self._files is not None:
            self._files.check()


def count_pictures(root: str, options: Mapping[str, Any]) -> int:
    """The number of pictures of a dataset with these options.

    Raises:
        DataError: as of the dataset.
    """
    if _reader(Path(root)) is not None:
        return 50_000 if options.get("split", "train") == "train" else 10_000
    return len(Dataset(root=root, **options))


def _reader(root: Path) -> Callable[[str], tuple[np.ndarray, list[int]]] | None:
    """The function that reads a batch by name; None where there are picture files instead."""
    for folder in (root, root / "cifar-10-batches-py"):
        if (folder / "test_batch").is_file():
            return lambda name: _read_pickled(folder / name)
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "test_batch.bin").is_file():
            return lambda name: _read_binary(folder / f"{name}.bin")
    if (root / "train").is_dir() and (root / "test").is_dir():
        return None
    raise DataError(
        f"{root}: no cifar-10-batches-py, no cifar-10-batches-bin and no train and test folders here; set dataset.root "
        "to the folder above one of them (torchvision.datasets.CIFAR10(root, download=True) makes the first)"
    )


def _joined(parts: list[tuple[np.ndarray, list[int]]]) -> tuple[np.ndarray, list[int]]:
    """All batches: uint8 NHWC and labels."""
    import numpy as np

    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), [label for _, labels in parts for label in labels]


def _read_binary(path: Path) -> tuple[np.ndarray, list[int]]:
    """Records of a label byte and 3,072 bytes, channel by channel."""
    import numpy as np

    data = _bytes(path)
    if not data or len(data) % (1 + _BYTES):
        raise DataError(f"{path}: {len(data)} bytes are no whole number of records of {1 + _BYTES}; get it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _BYTES)
    return _checked(path, records[:, 1:], records[:, 0].tolist())


def _read_pickled(path: Path) -> tuple[np.ndarray, list[int]]:
    """`{b"data": uint8 (N, 3072), b"labels": [...]}`, by an unpickler that knows arrays and nothing else."""
    import io

    import numpy as np

    try:
        arrays = _ArraysOnly(io.BytesIO(_bytes(path)), encoding="bytes").load()
        pixels, labels = arrays[b"data"], [int(label) for label in arrays[b"labels"]]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: is no batch of CIFAR-10 ({error}); get it again") from None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _BYTES):
        raise DataError(f"{path}: its arrays are not CIFAR-10's (N, {_BYTES}) of bytes; get it again")
    return _checked(path, pixels, labels)


def _checked(path: Path, pixels: np.ndarray, labels: list[int]) -> tuple[np.ndarray, list[int]]:
    if labels and not 0 <= min(labels) <= max(labels) < NUM_CLASSES:
        raise DataError(f"{path}: a label outside 0 to 9 was found; these are not CIFAR-10's files")
    return pixels, labels


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); get the dataset again") from error


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays of numbers; whatever else a pickle names is refused, as it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _new_array(kind: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array, to be filled by its pickled state."""
    import numpy as np

    return np.ndarray.__new__(np.ndarray, shape, "B")
