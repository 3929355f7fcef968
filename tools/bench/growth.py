"""How CPU time and memory grow with size: three sizes a decade apart, and the exponent between the last two.

    python -m tools.bench.growth [SUBJECT ...] [--scale SHARE]

An exponent of 1 is proportional growth; none may be above 1.1. `--scale 0.1` takes a tenth of each size. Each size has
a process of its own, whose peak memory is told above what it had when the work began.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from tools.bench._figures import budget

LIMIT = 1.1


def sweep(count: int, store: str) -> list[str]:
    """The quickstart over `count` learning rates (4 further steps per point)."""
    rates = ",".join(f"{1e-4 + i * 1e-7:.8f}" for i in range(count))
    return ["experiment=quickstart", f"paths.store={store}", f"train.lr={rates}"]


def plan(count: int) -> float:
    """CPU seconds to plan a sweep over `count` learning rates."""
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner

    with tempfile.TemporaryDirectory() as store:
        return cpu_seconds(lambda: Planner(build(sweep(count, store))).plan())


@contextlib.contextmanager
def finished(count: int) -> Iterator[Path]:
    """A store in which a sweep over `count` points was run to its end; every step left one small file."""
    from experiments.launching.prepare import prepare
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner
    from experiments.store.documents import Manifest, Notes, Request
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import Store, finish, new_attempt

    with tempfile.TemporaryDirectory() as store:
        graph = build(sweep(count, store))
        prepare(graph, Planner(graph).plan(), Store(Path(store)))
        for node in graph.nodes.values():
            attempt = StepFolder(node.folder).attempt(new_attempt(node.folder))
            attempt.files.mkdir()
            (attempt.files / "scores.json").write_text("{}")
            inputs = {p: Manifest.needed(graph.nodes[p].folder).digest for p in node.upstream}
            asked = Request.needed(node.folder)
            finish(node.folder, Manifest.of_files(asked, attempt.number, attempt.files, Notes(), inputs))
        yield Path(store)


def plan_again(count: int) -> float:
    """CPU seconds to find that a sweep over `count` points is finished."""
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner

    with finished(count) as store:
        return cpu_seconds(lambda: Planner(build(sweep(count, str(store)))).plan())


def status(count: int) -> float:
    """CPU seconds of `maskgit status --json` after a sweep over `count` points."""
    from experiments.commands import status as command

    with finished(count) as store:
        return cpu_seconds(lambda: quietly(command, "--json", "--all", "--store", str(store)))


def gc(count: int) -> float:
    """CPU seconds of `maskgit gc` after a sweep over `count` points was dropped."""
    from experiments.commands import gc as command
    from experiments.store.records import pipelines

    with finished(count) as store:
        quietly(command, "--store", str(store), "--drop", pipelines(store)[0].stem)
        return cpu_seconds(lambda: quietly(command, "--store", str(store)))


def report(count: int) -> float:
    """CPU seconds of the page about a sweep over `count` points."""
    from experiments.reporting.page import inputs_of, page
    from experiments.store.records import records

    with finished(count) as store:
        record = records(store)[0]
        return cpu_seconds(lambda: page(inputs_of(store, record), record))


def sync(count: int) -> float:
    """CPU seconds to ship `count` points to a fresh MLflow database."""
    from experiments.tracking.mlflow_store import ship
    from tools.bench.shipping import METRICS, write_store

    with tempfile.TemporaryDirectory() as folder:
        made = itertools.count()

        def whole() -> None:
            root = Path(folder, f"store{next(made)}")
            write_store(root, "warm", 5)
            ship(root)
            write_store(root, "bench", count // METRICS)
            ship(root)

        return cpu_seconds(whole)


def quietly(command: ModuleType, *given: str) -> None:
    """The work of a verb, without its printing."""
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    with contextlib.redirect_stdout(io.StringIO()):
        command.main(parser.parse_args(given))


def evaluate(count: int) -> float:
    """CPU seconds of features, their moments and the Inception score of `count` images, by a network of one layer."""
    import torch

    from maskgit_core.evaluation.blocks import Blocks
    from maskgit_core.evaluation.features import extract, moments_of, streamed_inception_score

    class Network(torch.nn.Module):
        def all_outputs(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
            features = images_BCHW.flatten(1).float()
            return {"features": features, "logits": features[:, :10] / 25}

    def read(items: range) -> torch.Tensor:
        draws = torch.Generator().manual_seed(items.start)
        return torch.randint(0, 256, (len(items), 3, 8, 8), generator=draws, dtype=torch.uint8)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            blocks = Blocks(Path(folder), "set", count, lambda path, write: write(path))
            for _ in extract(blocks, read, Network(), wanted=("features", "logits")):
                pass
            moments_of(blocks)
            streamed_inception_score(blocks, 10, "content")

    return cpu_seconds(whole)


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
    "plan_again": (plan_again, "points", 3),
    "status": (status, "points", 3),
    "gc": (gc, "points", 3),
    "report": (report, "points", 3),
    "sync": (sync, "points", 10_000),
    "evaluate": (evaluate, "images", 500),
    "journal": (journal, "points", 10_000),
    "join": (join, "samples", 2_000),
    "batches": (batches, "samples", 20_000),
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads; the better of two calls."""
    spent = []
    global _before_mb
    _before_mb = peak_mb()
    for _ in range(2):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def peak_mb() -> float:
    """Most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_before_mb = 0.0


def measured(name: str, size: int) -> tuple[float, float]:
    """CPU seconds and MB of one size, in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.growth", name, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def main() -> None:
    """Prints one JSON object a subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size:
        work, _, smallest = SUBJECTS[args.subjects[0]]
        work(min(smallest, args.size))  # imports and first calls are not growth
        print(json.dumps([work(args.size), peak_mb() - _before_mb]))
        return
    for name in args.subjects or SUBJECTS:
        _, unit, smallest = SUBJECTS[name]
        sizes = [max(2, round(args.scale * smallest * 10**power)) for power in range(3)]
        found = [measured(name, size) for size in sizes]
        told = ", ".join(f"{size:,} {unit}: {s:.3g} s, {mb:.0f} MB" for size, (s, mb) in zip(sizes, found, strict=True))
        for kind, (before, after) in (("time", (found[1][0], found[2][0])), ("memory", (found[1][1], found[2][1]))):
            # what takes less than 10 MB is the allocator's, not growth
            grown = max(after, 10.0) / max(before, 10.0) if kind == "memory" else after / before
            exponent = math.log(grown) / math.log(sizes[2] / sizes[1])
            budget(f"growth/{name}/{kind}", exponent, LIMIT, "exponent", told)


if __name__ == "__main__":
    main()
