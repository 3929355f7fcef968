"""CelebA-HQ (Karras et al. 2018, arXiv:1710.10196): 30,000 faces at 1024 x 1024, without classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from maskgit_core.content import resolve
from maskgit_core.datasets._flat_pictures import FlatPictures
from maskgit_core.hints import Content, Range

COUNT = 30_000
NUM_CLASSES = None


class Dataset(FlatPictures):
    """CelebA-HQ's pictures in the order of their names.

    Args:
        root: the folder of the pictures (`CelebA-HQ-img` of CelebAMask-HQ, or a resized copy).
        split: `all`, or `train` and `val`: the last `num_val` pictures are the validation split.
        image_size: side after the resize.
        partial: allows other counts than the published set's.
    """

    def __init__(
        self,
        *,
        root: Content[str | list[str]],
        split: Literal["all", "train", "val"] = "all",
        num_val: Annotated[int, Range(1, 29_999)] = 3_000,
        image_size: Annotated[int, Range(8, 1024)] = 256,
        partial: bool = False,
    ) -> None:
        count = None if partial else COUNT
        super().__init__("CelebA-HQ", resolve(root), split=split, num_val=num_val, image_size=image_size, count=count)


def count_pictures(root: str, options: Mapping[str, Any]) -> int:
    """The number of pictures of a dataset with these options.

    Raises:
        DataError: as of the dataset.
    """
    pictures = Dataset(root=root, **options)
    pictures.check_count()
    return len(pictures)
