"""How CPU time grows with size: three sizes a decade apart, and the exponent between the last two.

    python -m tools.bench.growth [SUBJECT ...] [--scale SHARE]

An exponent of 1 is proportional growth; none may be above 1.1. `--scale 0.1` takes a tenth of each size.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.bench._figures import budget

LIMIT = 1.1


def plan(count: int) -> float:
    """CPU seconds to plan a sweep over `count` learning rates (4 further steps per point)."""
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner

    rates = ",".join(f"{1e-4 + i * 1e-7:.8f}" for i in range(count))
    with tempfile.TemporaryDirectory() as store:
        return cpu_seconds(
            lambda: Planner(build(["experiment=quickstart", f"paths.store={store}", f"train.lr={rates}"])).plan()
        )


def journal(count: int) -> float:
    """CPU seconds to read back a journal of `count` points, as reports and shipping do."""
    from experiments.store.journal import Journal, read_points

    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder, "attempts", "0001", "journal.jsonl")) as lines:
            for step in range(count // 5):
                lines.log({f"m{k}": step * 0.5 for k in range(5)}, step)
        return cpu_seconds(lambda: read_points(Path(folder)))


def join(count: int) -> float:
    """CPU seconds to join `count` samples of 32 x 32 pixels into one file."""
    import numpy as np

    from maskgit_core.sample_files import piece_name, piece_ranges, write_joined, write_piece

    with tempfile.TemporaryDirectory() as folder:
        pieces = []
        for first, end in piece_ranges(count, 500):
            pieces.append(Path(folder, piece_name(first, end)))
            images = np.zeros((end - first, 32, 32, 3), np.uint8)
            write_piece(pieces[-1], {"images": images, "labels": np.arange(first, end)})
        names = {"arr_0": "images", "labels": "labels"}
        return cpu_seconds(lambda: write_joined(Path(folder, "joined.npz"), pieces, names))


def batches(count: int) -> float:
    """CPU seconds to read one epoch of `count` samples from token shards, in batches of 256."""
    import itertools

    import numpy as np

    from maskgit_core.batches.tokens import Batches
    from maskgit_core.shards.format import Layout
    from maskgit_core.shards.reader import TokenShards
    from maskgit_core.shards.writer import Samples, write_manifest, write_shard

    layout, size = Layout(codebook_size=1024, grid=(8, 8), num_variants=1), 10_000
    with tempfile.TemporaryDirectory() as folder:
        indexes = []
        for number, first in enumerate(range(0, count, size)):
            rows = min(size, count - first)
            tokens, labels = np.zeros((rows, 1, 8, 8), np.int64), np.zeros(rows, np.int64)
            samples = Samples([str(first + i) for i in range(rows)], labels, tokens)
            indexes.append(write_shard(Path(folder), number, layout, samples))
        write_manifest(Path(folder), layout, indexes, num_classes=1)

        def epoch() -> None:
            stream = Batches(TokenShards(folder), batch_size=256, seed=0)
            for _ in itertools.islice(stream, -(-count // 256)):
                pass

        return cpu_seconds(epoch)


#: Subject -> what it takes a number of, and the smallest of three sizes.
SUBJECTS: dict[str, tuple[Callable[[int], float], str, int]] = {
    "plan": (plan, "points", 10),
    "journal": (journal, "points", 10_000),
    "join": (join, "samples", 2_000),
    "batches": (batches, "samples", 20_000),
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads; the better of two calls."""
    spent = []
    for _ in range(2):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def main() -> None:
    """Prints one JSON object a subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    for name in args.subjects or SUBJECTS:
        work, unit, smallest = SUBJECTS[name]
        sizes = [max(2, round(args.scale * smallest * 10**power)) for power in range(3)]
        work(sizes[0])  # imports and first calls are not growth
        spent = [work(size) for size in sizes]
        exponent = math.log(spent[2] / spent[1]) / math.log(sizes[2] / sizes[1])
        told = ", ".join(f"{size:,} {unit}: {seconds:.3g} s" for size, seconds in zip(sizes, spent, strict=True))
        budget(f"growth/{name}", exponent, LIMIT, "exponent", told)


if __name__ == "__main__":
    main()
