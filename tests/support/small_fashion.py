"""The first pictures of the bundled Fashion-MNIST subset as a dataset of their own."""

import gzip
import struct
from pathlib import Path

from maskgit_core.content import resolve


def write_small_fashion(folder: Path, num_train: int, num_test: int) -> Path:
    """idx files with so many pictures of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    source = resolve("bundled:fashion_mnist_subset")
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        for name, item in ((f"{prefix}-images-idx3-ubyte", 28 * 28), (f"{prefix}-labels-idx1-ubyte", 1)):
            data = gzip.decompress((source / f"{name}.gz").read_bytes())
            begin = 16 if item > 1 else 8
            header = data[:4] + struct.pack(">I", count) + data[8:begin]
            (folder / name).write_bytes(header + data[begin : begin + count * item])
    return folder
