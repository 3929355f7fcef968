"""Shuffled batches of 256 as int64 tensors: token shards against an npz file an image and three packages for shards.

    MASKGIT_ORIGINAL=CHECKOUT python -m tools.bench.shard_reading

All hold the same samples (two variants of 256 tokens, a label). The npz folder is read by the original's own dataset
(MASKGIT_ORIGINAL; else by one like it) and torch's loader; WebDataset by its own shuffle buffer, decoders and batching;
mosaicml-streaming and litdata from what their own writers made, shuffled, one variant drawn, by the loader that each
documents. A peer counts at its better of 0 and 2 workers. Rounds are interleaved; a peer that is not installed is left
out, and said to be. The samples are read from memory, as files just written are, on every side.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from maskgit_core.batches.tokens import Batches
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from tools.bench._figures import figure, named, original

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

    def __getitem__(self, index: int) -> dict[str, Any]:
        with np.load(self.files[index]) as data:
            return {"idx": data["idx" if np.random.random() < 0.5 else "idx_flip"], "y": data["y"]}


def forked(workers: int) -> dict[str, Any]:
    """Options of a loader with so many workers, forked whatever an imported package set."""
    return {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}


def npz_batches(folder: Path, workers: int) -> Iterable[Any]:
    """The usual loader over the npz folder."""
    module = original("datasets/cached_folder.py")
    data = module.CachedFolder(str(folder / "npz")) if module else NpzFolder(folder / "npz")
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, **forked(workers))
    return ((batch["idx"].long(), batch["y"].long()) for batch in loader)


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
    return webdataset.WebLoader(data, batch_size=None, **forked(workers))  # type: ignore[no-any-return]


def variant_of(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """One of a sample's variants and its label."""
    return torch.from_numpy(sample["tokens"][np.random.randint(VARIANTS)].astype(np.int64)), int(sample["label"])


def streaming_batches(folder: Path, workers: int) -> Iterable[Any]:
    """mosaicml-streaming over shards that its own writer made."""
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Data(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            return variant_of(super().__getitem__(at))

    data = Data(local=str(folder / "streaming"), shuffle=True, batch_size=BATCH)
    return StreamingDataLoader(data, batch_size=BATCH, drop_last=True, **forked(workers))  # type: ignore[no-any-return]


def litdata_batches(folder: Path, workers: int) -> Iterable[Any]:
    """litdata over chunks that its own writer made."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Data(StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
            return variant_of(super().__getitem__(index))

    data = Data(str(folder / "litdata"), shuffle=True, drop_last=True)
    return StreamingDataLoader(data, batch_size=BATCH, **forked(workers))  # type: ignore[no-any-return]


def of_npz(path: str) -> dict[str, Any]:
    """An npz file's sample, as the packages' writers are given it."""
    with np.load(path) as data:
        tokens = np.stack([data["idx"], data["idx_flip"]]).astype(np.uint16)
        return {"tokens": tokens, "label": int(data["y"])}


def write_streaming(folder: Path) -> None:
    """The npz folder's samples by mosaicml-streaming's writer."""
    from streaming import MDSWriter

    columns = {"tokens": f"ndarray:uint16:{VARIANTS},{GRID[0] * GRID[1]}", "label": "int"}
    with MDSWriter(out=str(folder / "streaming"), columns=columns) as sink:
        for path in sorted((folder / "npz").iterdir()):
            sink.write(of_npz(str(path)))


def write_litdata(folder: Path) -> None:
    """The npz folder's samples by litdata's writer."""
    from litdata import optimize

    paths = sorted(map(str, (folder / "npz").iterdir()))
    optimize(of_npz, paths, str(folder / "litdata"), chunk_bytes="16MB", num_workers=1)


def made(name: str, write: Callable[[Path], None], folder: Path) -> bool:
    """Whether the peer `name` is installed and wrote its shards."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            write(folder)
    except ImportError as error:
        print(f"{name}'s row is left out: {error}; pip install '.[bench]'", file=sys.stderr)
        return False
    return True


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
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, options.samples)
        shards = TokenShards(folder / "shards")
        epoch = options.samples // BATCH - 4
        peers = {"npz": npz_batches, "webdataset": webdataset_batches}
        if made("mosaicml-streaming", write_streaming, folder):
            peers["mosaicml-streaming"] = streaming_batches
        if made("litdata", write_litdata, folder):
            peers["litdata"] = litdata_batches
        measured: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            ours = rate(Batches(shards, batch_size=BATCH, seed=0), max(2000, epoch))
            measured.setdefault(("ours", 0), []).append(ours)
            for name, workers in itertools.product(peers, (0, 2)):
                most = epoch if name != "npz" else min(epoch, 8192 // BATCH)
                measured.setdefault((name, workers), []).append(rate(peers[name](folder, workers), most))
    for name in peers:
        workers = max((0, 2), key=lambda w: median(measured[name, w]))
        peer = name if name == "npz" else named(name)
        note = f"{options.samples:,} samples of 2 x 256 tokens, batches of {BATCH}; {peer} with {workers} workers"
        figure(f"shard_reading/{name}", measured["ours", 0], measured[name, workers], "samples/s", note, higher=True)


if __name__ == "__main__":
    main()
