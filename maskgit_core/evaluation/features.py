"""Features of many images through one extractor, and their moments, a block at a time.

B batch, C channels, H, W height and width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskgit_core.devices import products
from maskgit_core.errors import DataError, refused_as
from maskgit_core.evaluation.blocks import Blocks, ReadableBlocks
from maskgit_core.metrics.frechet import Metric, Moments
from maskgit_core.metrics.inception_score import Metric as InceptionScore
from maskgit_core.metrics.inception_score import Order, assign_splits, pixel_hashes, splits_of_size

#: Images a forward pass, by device: fixed, because the last digits of features may depend on it.
FORWARD_BATCH = {"cpu": 32, "cuda": 128}

ReadImages = Callable[[range], Tensor]


@torch.inference_mode()
def outputs_of(
    extractor: nn.Module, images_BCHW: Tensor, device: str = "cpu", wanted: Sequence[str] = ("features",)
) -> dict[str, Tensor]:
    """The network's outputs for uint8 images, (B, ...) float32 on the CPU; with `logits` also `hashes` of pixels.

    Always in fp32: features are part of a protocol, and TF32 would move them.
    """
    kind = torch.device(device).type
    parts: list[dict[str, Tensor]] = []
    for part in images_BCHW.split(FORWARD_BATCH.get(kind, 32)):
        pixels = part.pin_memory().to(device, non_blocking=True) if kind == "cuda" else part.to(device)
        with products("fp32", kind):
            if tuple(wanted) == ("features",):
                given = {"features": extractor(pixels)}
            else:
                given = extractor.all_outputs(pixels)  # type: ignore[operator]
        parts.append({name: given[name].float().cpu() for name in wanted})
    outputs = {name: torch.cat([part[name] for part in parts]) for name in wanted}
    if "logits" in wanted:
        outputs["hashes"] = pixel_hashes(images_BCHW)
    return outputs


def features_of(extractor: nn.Module, images_BCHW: Tensor, device: str = "cpu") -> Tensor:
    """float32 features (B, D) on the CPU of uint8 images."""
    return outputs_of(extractor, images_BCHW, device)["features"]


def extract(
    blocks: Blocks,
    read: ReadImages,
    extractor: nn.Module,
    device: str = "cpu",
    wanted: Sequence[str] = ("features",),
) -> Iterator[int]:
    """Computes this rank's missing feature blocks; `read(items)` gives uint8 images BCHW. Yields items done.

    The next block's images are read while the network sees this one's.
    """
    yield from blocks.compute(lambda images: outputs_of(extractor, images, device, wanted), read)


def moments_of(blocks: ReadableBlocks, key: str = "features") -> Moments:
    """Mean and covariance over all blocks, in block order."""
    metric = Metric()
    for tensors in blocks.read(key):
        metric.update(tensors[key])
    return metric.moments


def gather(blocks: ReadableBlocks, path: Path, key: str = "features", limit: int | None = None) -> np.ndarray:
    """Writes the features of all blocks (the first `limit` rows) into one `.npy` and maps it: float32 (N, D)."""
    count = blocks.count if limit is None else min(limit, blocks.count)
    mapped: np.memmap | None = None
    at = 0
    for tensors in blocks.read(key):
        rows = tensors[key][: count - at].numpy()
        if mapped is None:
            mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, rows.shape[1]))
        mapped[at : at + len(rows)] = rows
        at += len(rows)
        if at >= count:
            break
    assert mapped is not None
    mapped.flush()
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def streamed_inception_score(
    blocks: ReadableBlocks, num_splits: int, order: Order, split_size: int | None = None
) -> dict[str, float]:
    """Inception score over blocks that hold `logits` and `hashes`; two passes, the first over the hashes alone."""
    if split_size is not None:
        num_splits = splits_of_size(blocks.count, split_size)
    hashes_N = torch.cat([tensors["hashes"] for tensors in blocks.read("hashes")])
    splits_N = assign_splits(blocks.count, num_splits, order, hashes_N, split_size)
    metric = InceptionScore(num_splits=num_splits)
    at = 0
    for tensors in blocks.read("logits"):
        metric.update(tensors["logits"], splits_N[at : at + len(tensors["logits"])])
        at += len(tensors["logits"])
    return metric.compute()


def save_moments(moments: Moments, path: Path) -> None:
    """Writes moments as safetensors: `mean` (D,), `covariance` (D, D) float64 and `count`."""
    tensors = {"mean": moments.mean, "covariance": moments.covariance, "count": torch.tensor(moments.num_samples)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_moments(path: Path) -> Moments:
    """Reads what `save_moments` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    told = f"{path}: cannot be read as moments ({{reason}}); make the reference statistics again"
    with refused_as(DataError, told):
        tensors = load_file(path)
        return Moments(tensors["mean"], tensors["covariance"], int(tensors["count"]))


def describe_extractor(name: str, options: dict[str, Any], extractor: Any) -> dict[str, Any]:
    """The extractor's part of a protocol: name, options, weights' sha256 and what happens to pixels first."""
    plain = {key: value for key, value in options.items() if key != "weights"}
    return {
        "name": name,
        "options": plain,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
    }
