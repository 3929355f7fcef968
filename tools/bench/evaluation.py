"""Evaluating reconstructions without the networks' own forward passes, against the original's way.

    python -m tools.bench.evaluation

Theirs: scikit-image's PSNR and SSIM image by image, originals and reconstructions written as PNGs, and a second pass
that reads both folders back for the Fréchet distance (torch-fidelity). Ours: the same numbers as they stream by. Both
sides see the same images of 256 x 256 and the same cheap stand-in for the feature network, interleaved in one run, on
one thread, in CPU seconds. A second figure compares memory: the moments of 50,000 feature rows against 1,000.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgit_core.images.pixels import to_uint8
from maskgit_core.metrics.frechet import Metric, frechet_distance
from maskgit_core.metrics.pair import per_image
from tools.bench._figures import budget, figure

COUNT, SIDE, WIDTH, ROUNDS = 48, 256, 64, 4


def images(seed: int) -> tuple[Tensor, Tensor]:
    """Originals (uint8 values as floats in [0, 1]) and reconstructions: smooth pictures, which pack like photos."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(COUNT, 3, 24, 24, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    original = (smooth + 0.02 * torch.randn(smooth.shape, generator=draws)).clamp(0, 1)
    return to_uint8(original).float() / 255, (smooth * 0.9 + 0.05).clamp(0, 1)


def features(uint8_BCHW: Tensor) -> Tensor:
    """The stand-in for the feature network: coarse pixels."""
    return torch.nn.functional.adaptive_avg_pool2d(uint8_BCHW.float(), (5, 5)).flatten(1)[:, :WIDTH]


def our_way(original: Tensor, decoded: Tensor) -> dict[str, float]:
    """Pair metrics and moments of both sides as the batches stream by."""
    sums = {"psnr": 0.0, "ssim": 0.0}
    sets = (Metric(), Metric())
    for a, b in zip(original.split(32), decoded.split(32), strict=True):
        for name, values in per_image(a, b).items():
            sums[name] += float(values.sum())
        for metric, batch in zip(sets, (a, b), strict=True):
            metric.update(features(to_uint8(batch)))
    distance = frechet_distance(sets[0].moments, sets[1].moments)
    return {**{name: total / COUNT for name, total in sums.items()}, "frechet": distance}


def their_way(original: Tensor, decoded: Tensor, folder: Path) -> dict[str, float]:
    """scikit-image on the CPU, two folders of PNGs, a second pass over them."""
    from scipy import linalg
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    sums = {"psnr": 0.0, "ssim": 0.0}
    for index, pair in enumerate(zip(original, decoded, strict=True)):
        a, b = (image.permute(1, 2, 0).numpy() for image in pair)
        sums["psnr"] += float(peak_signal_noise_ratio(a, b, data_range=1))
        sums["ssim"] += float(structural_similarity(a, b, data_range=1.0, channel_axis=-1))
        for name, image in (("a", a), ("b", b)):
            Image.fromarray((image * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(folder / f"{name}{index:05d}.png")
    rows = []
    for name in "ab":
        read = [np.asarray(Image.open(folder / f"{name}{index:05d}.png")) for index in range(COUNT)]
        batches = [torch.from_numpy(np.stack(read[i : i + 32])).permute(0, 3, 1, 2) for i in range(0, COUNT, 32)]
        rows.append(torch.cat([features(batch) for batch in batches]).double().numpy())
    covariances = [np.cov(r, rowvar=False) for r in rows]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    between = float(((rows[0].mean(0) - rows[1].mean(0)) ** 2).sum())
    distance = between + float(np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root).real)
    return {**{name: total / COUNT for name, total in sums.items()}, "frechet": distance}


def peak_memory(rows: int) -> float:
    """Peak resident MB of a process that streams so many feature rows (D = 2,048) into moments."""
    code = (
        "import resource, torch\nfrom maskgit_core.metrics.frechet import Metric\n"
        "torch.set_num_threads(1)\nm = Metric()\n"
        f"for i in range({rows} // 500): m.update(torch.rand(500, 2048))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Prints one JSON object a figure."""
    torch.set_num_threads(1)
    spent: tuple[list[float], list[float]] = ([], [])
    scores: list[dict[str, float]] = [{}, {}]
    for seed in range(ROUNDS):
        original, decoded = images(seed)
        with tempfile.TemporaryDirectory() as folder:
            for side, work in enumerate((our_way, their_way)):
                began = time.process_time()
                scores[side] = work(original, decoded) if side == 0 else work(original, decoded, Path(folder))  # type: ignore[operator]
                spent[side].append(1000 * (time.process_time() - began) / COUNT)
    gap = {name: abs(scores[0][name] - scores[1][name]) / abs(scores[1][name]) for name in scores[0]}
    note = "ms an image of 256 x 256; relative differences " + ", ".join(f"{k} {v:.0e}" for k, v in gap.items())
    figure("eval_tokenizer_without_forward", spent[0], spent[1], "CPU ms", note)
    small, large = peak_memory(1000), peak_memory(50_000)
    budget(
        "moments_peak_memory", large, 1.1 * small, "MB", "50,000 feature rows; the limit is a tenth above 1,000 rows'"
    )


if __name__ == "__main__":
    main()
