"""A cache of ImageNet's size: how long it takes to open and to resume in mid-epoch, and how much memory reading takes.

WebDataset cannot resume in mid-epoch, so its users read and throw away; that is timed over one shard and scaled up.
Ours starts at once, anywhere. A process of its own reads a whole epoch and checks that it shuffles exactly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from maskgit_core.shards.format import Layout
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from tools.bench._figures import budget, figure

IMAGENET, SHARD, BATCH = 1_281_167, 4096, 256


def make(folder: Path, num_samples: int) -> None:
    """Writes a cache of two variants of 256 tokens; the first two tokens of a sample spell its number."""
    layout = Layout(16384, (16, 16), 2)
    rng = np.random.default_rng(0)
    filler = rng.integers(0, 16384, (SHARD, 2, 16, 16))
    indexes = []
    for number, first in enumerate(range(0, num_samples, SHARD)):
        ids = np.arange(first, min(first + SHARD, num_samples))
        tokens = filler[: len(ids)].copy()
        tokens[:, :, 0, 0], tokens[:, :, 0, 1] = (ids // 16384)[:, None], (ids % 16384)[:, None]
        labels = ids % 1000
        keys = [f"n{label:08d}/n{label:08d}_{i}.JPEG" for i, label in zip(ids.tolist(), labels.tolist(), strict=True)]
        indexes.append(write_shard(folder, number, layout, Samples(keys, labels, tokens)))
    write_manifest(folder, layout, indexes, num_classes=1000)


def read(folder: Path) -> dict[str, float]:
    """Run in a process of its own: opens, resumes, reads an epoch, looks at its memory."""
    from maskgit_core.batches.tokens import Batches
    from maskgit_core.shards.reader import TokenShards

    started = time.perf_counter()
    shards = TokenShards(folder)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    first = next(iter(Batches(shards, batch_size=BATCH, seed=0, start=len(shards) // 2 + 77)))
    resumed = time.perf_counter() - started
    assert len(first) == BATCH
    seen = np.zeros(len(shards), dtype=np.int32)
    started = time.perf_counter()
    for batch in itertools.islice(Batches(shards, batch_size=BATCH, seed=0), -(-len(shards) // BATCH)):
        ids = batch.tokens_BL[:, 0] * 16384 + batch.tokens_BL[:, 1]
        within = ids[batch.indices_B < len(shards)].numpy()
        seen[within] += 1  # a sample twice in one batch would leave another unseen
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    anonymous = int(status.split("RssAnon:")[1].split()[0]) / 1024
    exact = float((seen == 1).all())
    return {"open_s": opened, "resume_s": resumed, "epoch_s": seconds, "rss_anon_mb": anonymous, "exact": exact}


def webdataset_skip_s(folder: Path, num_samples: int) -> float:
    """Seconds WebDataset takes to read through half an epoch, scaled from one shard."""
    import webdataset

    count = min(SHARD, num_samples)
    data = webdataset.WebDataset([str(folder / "shard-000000.tar")], shardshuffle=False).decode()
    started = time.perf_counter()
    for _ in itertools.islice(data, count):
        pass
    return (time.perf_counter() - started) / count * num_samples / 2


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=IMAGENET)
    parser.add_argument("--folder", type=Path, help="keep the cache here and use it again")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "manifest.json").exists():
            make(folder, options.samples)
        command = [sys.executable, "-m", "tools.bench.shard_scale", "--read", str(folder)]
        resumed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        skip = webdataset_skip_s(folder, options.samples)
    size = f"{options.samples:,} samples of 2 x 256 tokens"
    exact = "every sample once in the epoch" if resumed["exact"] else "NOT every sample once in the epoch"
    note = (
        f"to the first batch; {size}; theirs: WebDataset reads half an epoch and throws it away (scaled from one shard)"
    )
    figure("shard_scale/resume_in_mid_epoch", resumed["resume_s"], skip, "s", note)
    budget("shard_scale/open", resumed["open_s"], 2.0, "s", size)
    note = f"RssAnon after an epoch in {resumed['epoch_s']:.1f} s, torch included; {exact}"
    budget("shard_scale/anonymous_memory", resumed["rss_anon_mb"], 500.0, "MB", note)
    if not resumed["exact"]:
        raise SystemExit("the epoch was not a permutation")


if __name__ == "__main__":
    main()
