"""Makes the bundled Fashion-MNIST subset: the first 1,000 train and 200 test images of each class, in file order.

    python tools/make_fashion_mnist_subset.py [--source /usr/share/datasets/fashion-mnist] [--target FOLDER]

The same source always gives the same bytes (checked by a test): the gzip headers carry no name and no time. The licence
is Zalando's (MIT) and is beside the files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgit_core.content import BUNDLED
from maskgit_core.datasets.fashion_mnist import Dataset

PER_CLASS = {"train": 1000, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}
LICENSE = """The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

These files are a subset of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist, arXiv:1708.07747).
"""


def write_idx(path: Path, values: np.ndarray) -> None:
    """Writes uint8 `values` as a gzipped idx file whose bytes depend on nothing but the values."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(header + values.tobytes())


def make(source: Path, target: Path, splits: Sequence[str] = ("train", "test")) -> None:
    """Writes the two idx files of each split and the licence into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for split in splits:
        count = PER_CLASS[split]
        full = Dataset(root=str(source), split=split)  # type: ignore[arg-type]
        labels = full.labels
        kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
        write_idx(target / f"{PREFIX[split]}-images-idx3-ubyte.gz", full.images[kept])
        write_idx(target / f"{PREFIX[split]}-labels-idx1-ubyte.gz", labels[kept])
    (target / "LICENSE.txt").write_text(LICENSE)


def main() -> None:
    """Reads the arguments, makes the subset and prints each file's size and sha256."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--target", type=Path, default=BUNDLED / "fashion_mnist_subset")
    args = parser.parse_args()
    make(args.source, args.target)
    for path in sorted(args.target.iterdir()):
        print(f"{path.name}  {path.stat().st_size}  {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
