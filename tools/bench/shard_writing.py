"""Writing tokens on one core: token shards (synced to disk) against an npz file per image and WebDataset's writer.

The encoder is left out of the first two figures. The third caches pictures with a small encoder and tells how long the
writer waited for the encoder against how long the encoder waited for the writer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from maskgit_core.datasets.fashion_mnist import Dataset
from maskgit_core.images.encoding import Encoder
from maskgit_core.shards.format import Layout
from maskgit_core.shards.maker import NUM_WRITERS, CacheMaker, Settings
from maskgit_core.shards.writer import Samples, write_shard
from maskgit_core.tokenizers.vq import Tokenizer
from tools.bench._figures import budget, figure

VARIANTS, GRID, CODEBOOK, SHARD = 2, (16, 16), 1024, 4096


def shards(folder: Path, keys: list[str], labels: np.ndarray, tokens: np.ndarray) -> None:
    """Ours, with as many writers as the stage has."""
    layout = Layout(CODEBOOK, GRID, VARIANTS)

    def one(number: int) -> None:
        part = slice(number * SHARD, (number + 1) * SHARD)
        write_shard(folder, number, layout, Samples(keys[part], labels[part], tokens[part]))

    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        list(writers.map(one, range(-(-len(keys) // SHARD))))


def npz(folder: Path, keys: list[str], labels: np.ndarray, tokens: np.ndarray) -> None:
    """One npz file an image, with the original's members."""
    for number, (pair, label) in enumerate(zip(tokens.reshape(len(keys), VARIANTS, -1), labels, strict=True)):
        np.savez(folder / f"{number}.npz", idx=pair[0], idx_flip=pair[1], y=label)


def webdataset(folder: Path, keys: list[str], labels: np.ndarray, tokens: np.ndarray) -> None:
    """WebDataset's own writer."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "s-%06d.tar"), maxcount=SHARD, verbose=0) as sink:
        for key, label, pair in zip(keys, labels.tolist(), tokens.astype(np.uint16), strict=True):
            sink.write({"__key__": key, "cls": label, "tokens.npy": pair})


def measure(write: Callable[..., None], content: tuple[list[str], np.ndarray, np.ndarray]) -> float:
    """Samples a second."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        write(Path(temporary), *content)
        return len(content[0]) / (time.perf_counter() - started)


def with_encoder() -> tuple[float, float]:
    """Seconds in which the writer waited for the encoder, and the encoder for the writer."""

    torch.manual_seed(0)
    dataset = Dataset(root="bundled:fashion_mnist_subset", image_size=32, split="test")
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(shard_size=512, num_workers=2)
        maker = CacheMaker(dataset, Encoder(Tokenizer(), "cpu", "fp32"), Path(temporary), settings)
        maker.run()
    clock = maker.clock
    return clock.encoding_s + clock.decoding_wait_s, clock.writing_wait_s


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, options.samples)
    keys = [f"train/n{label:08d}/n{label:08d}_{i}.JPEG" for i, label in enumerate(labels.tolist())]
    content = (keys, labels, rng.integers(0, CODEBOOK, (options.samples, VARIANTS, *GRID)))
    sides = {"ours": shards, "npz": npz, "webdataset": webdataset}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for _ in range(options.rounds):
        for name, side in sides.items():
            rates[name].append(measure(side, content))
    os.sched_setaffinity(0, cores)
    for other in ("npz", "webdataset"):
        note = f"{options.samples} samples of 2 x 256 tokens, one core, no encoder; ours synced to disk"
        figure(f"shard_writing/{other}", rates["ours"], rates[other], "samples/s", note, higher=True)
    waits, blocks = with_encoder()
    note = f"of 2,000 images, that the encoder waited for the writer; the writer waited {waits:.2f} s for the encoder"
    budget("shard_writing/with_encoder", blocks, 0.05 * waits, "s", note)


if __name__ == "__main__":
    main()
