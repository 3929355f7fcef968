"""Features of many images through one extractor, and their moments, a block at a time.

B batch, C channels, H, W height and width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskgit_core.blocks import Blocks
from maskgit_core.errors import DataError
from maskgit_core.metrics.frechet import Metric, Moments

#: Images a forward pass, by device: fixed, because the last digits of features may depend on it.
FORWARD_BATCH = {"cpu": 32, "cuda": 128}

ReadImages = Callable[[range], Tensor]


@torch.inference_mode()
def features_of(extractor: nn.Module, images_BCHW: Tensor, device: str = "cpu") -> Tensor:
    """float32 features (B, D) on the CPU of uint8 images."""
    size = FORWARD_BATCH.get(device, 32)
    return torch.cat([extractor(part.to(device)).float().cpu() for part in images_BCHW.split(size)])


def extract(blocks: Blocks, read: ReadImages, extractor: nn.Module, device: str = "cpu") -> Iterator[int]:
    """Computes this rank's missing feature blocks; `read(items)` gives uint8 images BCHW. Yields items done."""
    yield from blocks.compute(lambda items: {"features": features_of(extractor, read(items), device)})


def moments_of(blocks: Blocks, key: str = "features") -> Moments:
    """Mean and covariance over all blocks, in block order."""
    metric = Metric()
    for tensors in blocks.read():
        metric.update(tensors[key])
    return metric.moments


def save_moments(moments: Moments, path: Path) -> None:
    """Writes moments as safetensors: `mean` (D,), `covariance` (D, D) float64 and `count`."""
    tensors = {"mean": moments.mean, "covariance": moments.covariance, "count": torch.tensor(moments.count)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_moments(path: Path) -> Moments:
    """Reads what `save_moments` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        tensors = load_file(path)
        return Moments(tensors["mean"], tensors["covariance"], int(tensors["count"]))
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as moments ({error}); make the reference statistics again") from error


def describe_extractor(name: str, options: dict[str, Any], extractor: Any) -> dict[str, Any]:
    """The extractor's part of a protocol: name, options, weights' sha256 and what happens to pixels first."""
    plain = {key: value for key, value in options.items() if key != "weights"}
    return {
        "name": name,
        "options": plain,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
    }
