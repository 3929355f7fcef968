"""Converts a set of samples between the forms that evaluators exchange.

    python tools/convert_samples.py samples.npz samples.tar      # or a folder of PNGs, or back

The form is told by the name: `.npz` (guided-diffusion's `arr_0`, uint8 NHWC), `.tar` (PNG and `.cls` members), anything
else a folder of PNGs. `--shuffle SEED` writes the images in a random order: ADM's official script takes the Inception
score over consecutive chunks of the file, so it is wrong for a file that is sorted by class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgit_core.errors import DataError, MaskgitError
from maskgit_core.images.image_sets import ImageSet, open_images, sorted_by_class, write_images


class Shuffled:
    """A set in a random order fixed by a seed."""

    def __init__(self, images: ImageSet, seed: int) -> None:
        self._images = images
        self._order = np.random.default_rng(seed).permutation(len(images))
        self.image_size = images.image_size
        self.labels = None if images.labels is None else images.labels[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices` of the new order."""
        return self._images.read(self._order[np.asarray(indices)].tolist())


def convert(source: Path, target: Path, shuffle: int | None = None) -> str:
    """Writes `source` as `target`; returns a note where the order matters to whoever scores it.

    Raises:
        DataError: the source holds no samples, or the target exists.
    """
    if target.exists():
        raise DataError(f"{target}: exists already; give another name or remove it")
    images: ImageSet = open_images(source)
    if shuffle is not None:
        images = Shuffled(images, shuffle)
    write_images(images, target)
    if sorted_by_class(images.labels):
        return "sorted by class: ADM's official script needs it shuffled for a right Inception score (--shuffle 0)"
    return ""


def main() -> int:
    """Reads the arguments and converts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--shuffle", type=int, metavar="SEED")
    args = parser.parse_args()
    try:
        note = convert(args.source, args.target, args.shuffle)
    except MaskgitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{args.target}: written" + (f"; note: {note}" if note else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
