"""Published sets of square pictures without classes (faces): a folder, nested or not, of a known number of files."""

from __future__ import annotations

from pathlib import Path

from maskgit_core.datasets import Sample
from maskgit_core.datasets.image_folder import pictures_below
from maskgit_core.errors import DataError
from maskgit_core.images.pictures import check_headers, read_picture

SPLITS = ("all", "train", "val")


class FlatPictures:
    """The pictures below a folder in the order of their file names (2 before 10), split at the end.

    Args:
        title: the set's name, for messages.
        folder: of the pictures.
        split: `all`, or `train` and `val`: the last `num_val` pictures are the validation split.
        image_size: side after the resize (PIL's lanczos, which both sets' authors use).
        count: how many pictures the published set has; None: any number will do.

    Raises:
        DataError: the folder holds no pictures, or not more than the validation split takes.
    """

    channels = 3
    num_classes: int | None = None
    crop = "center"

    def __init__(
        self, title: str, folder: Path, *, split: str, num_val: int, image_size: int, count: int | None
    ) -> None:
        self.title, self.folder, self.split, self.image_size, self._count = title, folder, split, image_size, count
        self.class_names: list[str] = []
        if split not in SPLITS:  # stages that choose the split themselves come past the checker
            raise DataError(f"split: {title} has no {split!r}; one of [{', '.join(SPLITS)}]")
        names = list(pictures_below(folder)) if folder.is_dir() else []
        names.sort(key=lambda name: (len(Path(name).name), Path(name).name))
        if len(names) <= (num_val if split != "all" else 0):
            raise DataError(f"{folder}: {len(names)} pictures here; set root to where {title}'s pictures are")
        self._total = len(names)
        self._names = {"all": names, "train": names[:-num_val], "val": names[-num_val:]}[split]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)})")
        from maskgit_core.images.transforms import center_crop

        name = self._names[index]
        return Sample(name, center_crop(read_picture(self.folder / name), self.image_size, "lanczos"), -1)

    def check(self) -> None:
        """Compares the count with the published set's and reads every picture's header.

        Raises:
            DataError: another count, or pictures that cannot be read, by name.
        """
        self.check_count()
        check_headers(self.folder, self._names)

    def check_count(self) -> None:
        """Compares the count with the published set's.

        Raises:
            DataError: another count.
        """
        if self._count is not None and self._total != self._count:
            raise DataError(
                f"{self.folder}: {self._total:,} pictures, {self.title} has {self._count:,}; "
                "complete it, or set partial=true for a trial"
            )
