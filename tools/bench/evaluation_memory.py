"""Memory and cost of the stage `evaluate` from 1,000 to 50,000 samples, and of the metrics that compare features.

    python -m tools.bench.evaluation_memory [--small 1000 --middle 5000 --large 50000]

Every figure comes from a process of its own that asks the kernel for its anonymous memory (RssAnon) a hundred times a
second. FID, sFID and IS run through the real stage, with a stand-in for the network that gives as much as Inception
does (2,048 pooled, 2,023 spatial features, 1,008 logits an image). KID and the k-nearest-neighbour metrics get 50,000 x
2,048 random features in a mapped file; the latter would take many minutes on one core, so they are stopped after
`--seconds`: their memory is that of one pair of blocks and does not grow with the blocks that follow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.bench._figures import budget

WIDTHS = {"features": 2048, "spatial": 2023, "logits": 1008}
SIDE = 12


class Extractor(nn.Module):
    """As many outputs as Inception's, from one random projection."""

    feature_dim = WIDTHS["features"]
    outputs = tuple(WIDTHS)
    distance_name = "fd_random"
    weights_sha256 = "random projection"
    preprocessing: dict[str, object] = {"resize": "none"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        draws = torch.randn(SIDE * SIDE, sum(WIDTHS.values()), generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", draws / SIDE)

    def all_outputs(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 images to the three outputs."""
        x: Tensor = images_BCHW.float().flatten(1) / 64 @ self.projection  # type: ignore[operator]
        return dict(zip(WIDTHS, x.split(list(WIDTHS.values()), dim=1), strict=True))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to pooled features."""
        return self.all_outputs(images_BCHW)["features"]


def anonymous_mb() -> float:
    """RssAnon of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def watch(work: Any, seconds: float | None = None) -> None:
    """Runs `work`, prints its peak of anonymous memory above the start and its CPU seconds; ends after `seconds`."""
    before, peak, done = anonymous_mb(), [0.0], threading.Event()
    began, deadline = time.process_time(), None if seconds is None else time.process_time() + seconds

    def tell() -> None:
        usage = {"mb": round(peak[0] - before, 1), "cpu_s": round(time.process_time() - began, 2)}
        print(json.dumps(usage), flush=True)

    def look() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_mb())
            if deadline is not None and time.process_time() > deadline:
                tell()
                os._exit(0)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    work()
    done.set()
    watcher.join()
    tell()


def stage(folder: Path, count: int) -> None:
    """FID, sFID and IS of `count` samples through the stages, against statistics of 3,000 images."""
    from experiments.config.specs import ExtractorSpec, Input
    from experiments.evaluation.set_scores import MetricName, Settings
    from experiments.running.attempt import Attempt
    from experiments.stages import evaluate, reference_statistics
    from experiments.store.documents import Manifest, Request
    from experiments.store.typed_json import parse

    spec = ExtractorSpec("random", {}, module="tools.bench.evaluation_memory")
    metrics: tuple[MetricName, ...] = ("frechet", "spatial_frechet", "inception_score")
    for name, number in (("real", 3000), ("samples", count)):
        with (folder / f"{name}.npz").open("wb") as file:
            pixels = np.random.default_rng(len(name)).integers(0, 256, (number, SIDE, SIDE, 1), dtype=np.uint8)
            np.savez(file, arr_0=pixels)
    del pixels
    made = Attempt(folder / "reference")
    reference_statistics.run(made, extractor=spec, statistics=str(folder / "real.npz"), metrics=metrics)
    made.close()
    (folder / "reference" / "files").symlink_to(made.files)
    stage = {"stage": "reference_statistics", "module": "", "version": 1, "kind": "reference"}
    request = parse(Request, {**stage, "fingerprint": "0" * 64, "config": {}})
    Manifest.of_files(request, 1, made.files, made.notes, {}).write(folder / "reference")
    reference = Input("reference", "reference", folder / "reference", "0" * 64, made.notes.facts, {})
    attempt = Attempt(folder / "evaluate")
    samples = str(folder / "samples.npz")
    settings = Settings(metrics)
    watch(lambda: evaluate.run(attempt, reference=reference, extractor=spec, samples=samples, settings=settings))
    attempt.close()


def compare(folder: Path, count: int, which: str, seconds: float) -> None:
    """KID or the k-nearest-neighbour metrics over `count` x 2,048 features in mapped files."""
    from maskgit_core.metrics import kernel, neighbours

    sets = []
    for name in ("a", "b"):
        rows = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, 2048))
        for at in range(0, count, 1000):
            rows[at : at + 1000] = np.random.default_rng(at).standard_normal((1000, 2048), dtype=np.float32)
        rows.flush()
        del rows
        sets.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    metric: Any = kernel.Metric(num_subsets=10) if which == "kernel" else neighbours.Metric()
    metric.update(*sets)
    watch(metric.compute, seconds)


def measured(mode: str, count: int, seconds: float) -> dict[str, float]:
    """The measurements of one piece of work in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tools.bench.evaluation_memory", "--mode", mode, "--folder", folder]
        command += ["--count", str(count), "--seconds", str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    usage: dict[str, float] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return usage


def main() -> None:
    """Prints one JSON object a figure; with `--mode` it is the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("small", 1000), ("middle", 5000), ("large", 50_000), ("count", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mode", choices=["stage", "kernel", "neighbours"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.mode == "stage":
        stage(args.folder, args.count)
        return
    if args.mode:
        compare(args.folder, args.count, args.mode, args.seconds)
        return
    small, middle, large = (measured("stage", n, args.seconds) for n in (args.small, args.middle, args.large))
    note = f"peak RssAnon of evaluate (FID, sFID, IS) above its start, {args.large:,} samples; {args.small:,} take "
    budget("evaluate_peak_memory", large["mb"], 400.0, "MB", f"{note}{small['mb']:.0f} MB")
    early = 1000 * (middle["cpu_s"] - small["cpu_s"]) / (args.middle - args.small)
    late = 1000 * (large["cpu_s"] - middle["cpu_s"]) / (args.large - args.middle)
    note = (
        f"for each further sample, {args.middle:,} to {args.large:,}; {args.small:,} to {args.middle:,} are the limit"
    )
    budget("evaluate_cost_of_a_sample", late, 1.1 * early, "CPU ms", f"{note}, and a tenth")
    whole = 2 * args.large * 2048 * 4 / 2**20
    for which in ("kernel", "neighbours"):
        usage = measured(which, args.large, args.seconds)
        note = f"peak RssAnon over {args.large:,} x 2,048 features of each set, the limit is the features' own size"
        budget(f"{which}_peak_memory", usage["mb"], whole, "MB", note)


if __name__ == "__main__":
    main()
