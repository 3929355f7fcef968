"""The Fréchet distance at 2,048 features against torch-fidelity 0.4, pytorch-fid and scipy's matrix root.

    python -m tools.bench.frechet

Three kinds of features: Gaussian, non-negative with a falling spectrum, and fewer samples than features. All sides are
measured in this one run, interleaved, one thread each, in CPU seconds.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy is loaded

import importlib.util
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskgit_core.metrics.frechet import Moments, frechet_distance
from tools.bench._figures import figure, named

WIDTH, ROUNDS = 2048, 3


def features(kind: str, seed: int) -> Tensor:
    """Features (N, WIDTH) of one set, float64."""
    draws = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, WIDTH, generator=draws, dtype=torch.float64)

    if kind == "gaussian":
        return normal(5000) * (1 + seed / 10)
    if kind == "singular":
        return normal(1000) * (1 + seed / 10)
    shared = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=shared, dtype=torch.float64)
    falling = mixing * torch.arange(1, WIDTH + 1, dtype=torch.float64).reciprocal()
    return (normal(5000) @ falling.T * (1 + seed / 20) + 0.02 * seed).clamp_min(0)


def by_torch_fidelity(a: Moments, b: Moments) -> float:
    """The package's own function of two sets' statistics."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    sides = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (a, b)]
    return float(fid_statistics_to_metric(*sides, False)["frechet_inception_distance"])


def by_pytorch_fid(a: Moments, b: Moments) -> float:
    """The package's own function, where it still runs with the scipy that is installed."""
    from pytorch_fid.fid_score import calculate_frechet_distance

    sides = [part.numpy() for m in (a, b) for part in (m.mean, m.covariance)]
    return float(calculate_frechet_distance(*sides))


def by_matrix_root(a: Moments, b: Moments) -> float:
    """scipy's general matrix root, as pytorch-fid and ADM's evaluator compute the distance."""
    from scipy import linalg

    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    between = float((a.mean - b.mean).square().sum())
    return between + float(a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root).real)


def by_features(a: Tensor, b: Tensor) -> float:
    """From features instead of covariances: the root's trace is the nuclear norm of the product of centred features.

    No eigenvalue's root is taken, so it is exact where covariances are singular, which the peers are not.
    """
    sides = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    between = (a.mean(0) - b.mean(0)).square().sum()
    total = sides[0].square().sum() + sides[1].square().sum()
    return float(between + total - 2 * torch.linalg.svdvals(sides[0] @ sides[1].T).sum())


def timed(work: Callable[[Moments, Moments], float], a: Moments, b: Moments) -> tuple[float, float]:
    """Result and CPU seconds."""
    began = time.process_time()
    return work(a, b), time.process_time() - began


def main() -> None:
    """Prints one JSON object a figure."""
    torch.set_num_threads(1)
    peers = {"torch_fidelity": by_torch_fidelity, "sqrtm": by_matrix_root}
    if importlib.util.find_spec("pytorch_fid"):
        peers["pytorch_fid"] = by_pytorch_fid
    else:
        print("pytorch-fid's rows are left out: pip install '.[bench]'", file=sys.stderr)
    for kind in ("gaussian", "falling", "singular"):
        sets = features(kind, 1), features(kind, 2)
        a, b = (Moments(x.mean(0), torch.cov(x.T), len(x)) for x in sets)
        exact = by_features(*sets) if len(sets[0]) < WIDTH else None
        spent: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}
        values = {}
        for _ in range(ROUNDS):
            for name, work in (("ours", frechet_distance), *peers.items()):
                values[name], seconds = timed(work, a, b)
                spent[name].append(seconds)
        for name in peers:
            gap = abs(values["ours"] - values[name]) / abs(values[name])
            package = {"torch_fidelity": "torch-fidelity", "pytorch_fid": "pytorch-fid", "sqrtm": "scipy"}[name]
            note = f"{WIDTH} features, {a.num_samples} samples; {named(package)}; relative difference {gap:.1e}"
            if exact is not None:
                off = [abs(values[side] - exact) / exact for side in ("ours", name)]
                note += f"; from the exact value: ours {off[0]:.1e}, theirs {off[1]:.1e}"
            figure(f"frechet_{kind}/{name}", spent["ours"], spent[name], "CPU s", note)


if __name__ == "__main__":
    main()
