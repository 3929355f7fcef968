"""Planning a sweep of 1,000 points, against one Hydra composition a point (as Hydra's own sweeper does); light starts.

    python -m tools.bench.planning

Both sides are measured in this one run, interleaved; the other side's 1,000 compositions are scaled up from 40.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench._figures import figure

POINTS = 1000
COMPOSED = 40


def main() -> None:
    """Prints one JSON object a figure."""
    from experiments.config import compose as configs
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner

    with tempfile.TemporaryDirectory() as store:
        lrs = ",".join(f"{1e-4 + i * 1e-6:.6f}" for i in range(POINTS))
        arguments = ["experiment=quickstart", f"paths.store={store}", f"train.lr={lrs}"]
        ours, theirs = 0.0, 0.0
        for _ in range(2):
            began = time.perf_counter()
            planned = Planner(build(arguments)).plan()
            ours += time.perf_counter() - began
            began = time.perf_counter()
            for _ in range(COMPOSED // 2):
                configs.compose([("experiment", "quickstart")])
            theirs += time.perf_counter() - began
        assert len({s.node.fingerprint for s in planned if s.node.request.name == "train"}) == POINTS
    ours, theirs = ours / 2, theirs * POINTS / COMPOSED
    note = f"{len(planned)} steps planned; the other side only composes, scaled from {COMPOSED} compositions"
    figure("plan_1000_points", ours, theirs, "s", note)
    for name, command in (("help", ["--help"]), ("plan", ["plan", "experiment=quickstart"])):
        figure(f"start_{name}", _seconds(command), _seconds(None), "s", "a process, against one that imports torch")


def _seconds(arguments: list[str] | None) -> float:
    """Wall time of `maskgit ARGUMENTS`, or of a process that imports torch; the better of three."""
    command = (
        [sys.executable, "-m", "experiments.cli", *arguments] if arguments else [sys.executable, "-c", "import torch"]
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[2])
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
