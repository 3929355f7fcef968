"""Puts the full Fashion-MNIST into a folder: from Debian's package where it is installed, else by torchvision.

python tools/fetch_fashion_mnist.py [--target data/fashion_mnist]
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import sys
import tempfile
from pathlib import Path

from maskgit_core.datasets.fashion_mnist import Dataset
from maskgit_core.errors import DataError, MaskgitError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
COUNTS = {"train": 60_000, "test": 10_000}


def fetch(target: Path, debian: Path = DEBIAN) -> str:
    """Writes the four idx files, unpacked, into `target`, checks them and returns where they came from."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        source, origin = debian, f"Debian's copy in {debian}"
        if not all((debian / f"{name}.gz").is_file() for name in FILES):
            source, origin = _download(Path(scratch)), "torchvision's mirror"
        for name in FILES:
            aside = target / f".{name}.tmp"
            with gzip.open(source / f"{name}.gz") as packed, aside.open("wb") as file:
                shutil.copyfileobj(packed, file)
            os.replace(aside, target / name)
    for split, count in COUNTS.items():
        data = Dataset(root=str(target), split=split)  # type: ignore[arg-type]
        if len(data.images) != count:
            raise DataError(f"{target}: split {split} has {len(data)} images, {count} were expected; fetch again")
    return origin


def _download(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(scratch), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST: no mirror could be reached ({error}); install Debian's dataset-fashion-mnist or copy "
            f"{', '.join(name + '.gz' for name in FILES)} into the folder by hand"
        ) from error
    return scratch / "FashionMNIST" / "raw"


def main() -> int:
    """Reads the arguments and fetches; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=Path("data/fashion_mnist"))
    target = parser.parse_args().target
    try:
        origin = fetch(target)
    except MaskgitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{target}: 60,000 + 10,000 images from {origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
