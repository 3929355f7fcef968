"""Shuffled batches of 256 as int64 tensors: token shards against an npz file per image and WebDataset's pipeline.

All three hold the same samples (two variants of 256 tokens, a label). The npz folder is read by a map-style dataset
and torch's loader, the usual way; WebDataset by its own shuffle buffer, decoders and batching. Each of them counts at
its better of 0 and 2 workers. Rounds are interleaved, and each side keeps its best round.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgit_core.batches.tokens import Batches
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from tools.bench._figures import figure

BATCH, VARIANTS, GRID, CODEBOOK = 256, 2, (16, 16), 1024


def make(folder: Path, num_samples: int, shard_size: int = 1024) -> None:
    """Writes the same random samples as token shards and as one npz file an image."""
    rng = np.random.default_rng(0)
    layout = Layout(CODEBOOK, GRID, VARIANTS)
    indexes = []
    (folder / "npz").mkdir()
    for number in range(-(-num_samples // shard_size)):
        count = min(shard_size, num_samples - number * shard_size)
        tokens = rng.integers(0, CODEBOOK, (count, VARIANTS, *GRID))
        labels = rng.integers(0, 1000, count)
        keys = [f"n{label:08d}/image_{number * shard_size + i:07d}" for i, label in enumerate(labels.tolist())]
        indexes.append(write_shard(folder / "shards", number, layout, Samples(keys, labels, tokens)))
        for i in range(count):
            path = folder / "npz" / f"{number * shard_size + i:07d}.npz"
            first, second = tokens[i].reshape(VARIANTS, -1)
            np.savez(path, idx=first, idx_flip=second, y=labels[i])  # the original's members
    write_manifest(folder / "shards", layout, indexes, num_classes=1000)


class NpzFolder(torch.utils.data.Dataset):
    """One npz file an image."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with np.load(self.files[index]) as data:
            return torch.from_numpy(data["idx" if np.random.random() < 0.5 else "idx_flip"]), int(data["y"])


def npz_batches(folder: Path, workers: int) -> Iterable[Any]:
    """The usual loader over the npz folder."""
    return torch.utils.data.DataLoader(
        NpzFolder(folder / "npz"), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
    )


def _one_variant(sample: tuple[np.ndarray, int]) -> tuple[torch.Tensor, int]:
    tokens, label = sample
    return torch.from_numpy(tokens[np.random.randint(VARIANTS)].reshape(-1).astype(np.int64)), label


def webdataset_batches(folder: Path, workers: int) -> Iterable[Any]:
    """WebDataset's usual pipeline over the same tars."""
    import webdataset

    urls = sorted(map(str, (folder / "shards").glob("*.tar")))
    data = (
        webdataset.WebDataset(urls, shardshuffle=100)
        .shuffle(1000)
        .decode()
        .to_tuple("tokens.npy", "cls")
        .map(_one_variant)
        .batched(BATCH, partial=False)
    )
    return webdataset.WebLoader(data, batch_size=None, num_workers=workers)


def rate(batches: Iterable[Any], most: int) -> float:
    """Samples a second over at most `most` batches, after the first one (workers have started)."""
    stream = iter(batches)
    next(stream)
    started, count = time.perf_counter(), 0
    for batch in itertools.islice(stream, most):
        count += len(batch.tokens_BL if hasattr(batch, "tokens_BL") else batch[0])
    return count / (time.perf_counter() - started)


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, options.samples)
        shards = TokenShards(folder / "shards")
        epoch = options.samples // BATCH - 4
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: rate(Batches(shards, batch_size=BATCH, seed=0), 2000),
            **{f"npz {w}": lambda w=w: rate(npz_batches(folder, w), epoch) for w in (0, 2)},  # type: ignore[misc]
            **{f"webdataset {w}": lambda w=w: rate(webdataset_batches(folder, w), epoch) for w in (0, 2)},  # type: ignore[misc]
        }
        best = dict.fromkeys(sides, 0.0)
        for _ in range(options.rounds):
            for name, side in sides.items():
                best[name] = max(best[name], side())
    for other in ("npz", "webdataset"):
        workers = max((0, 2), key=lambda w: best[f"{other} {w}"])
        theirs = best[f"{other} {workers}"]
        note = f"{options.samples} samples of 2 x 256 tokens, batches of {BATCH}; {other} with {workers} workers"
        figure(f"shard_reading/{other}", best["ours"], theirs, "samples/s", note, higher=True)


if __name__ == "__main__":
    main()
