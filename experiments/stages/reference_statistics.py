"""Statistics of real images that samples are compared with: made once, shared by all evaluations that need them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from experiments.config.specs import DatasetSpec, ExtractorSpec
from experiments.evaluation.feature_pass import FeaturePass
from experiments.evaluation.measures import counted
from experiments.evaluation.set_scores import MetricName, Settings
from experiments.running.attempt import Attempt
from experiments.store.typed_json import Block
from maskgit_core.content import resolve
from maskgit_core.errors import ConfigError
from maskgit_core.evaluation.blocks import Blocks
from maskgit_core.evaluation.features import gather, moments_of, save_moments
from maskgit_core.evaluation.reference_files import holds_statistics, read_statistics
from maskgit_core.files import write_json
from maskgit_core.hints import Content, Range
from maskgit_core.images.image_sets import open_images
from maskgit_core.images.pixels import stack

VERSION = 1
PRODUCES = "reference"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    extractor: ExtractorSpec,
    dataset: DatasetSpec | None = None,
    split: str = "train",
    num_images: Annotated[int | None, Range(2, None)] = None,
    statistics: Content[str | None] = None,
    metrics: tuple[MetricName, ...] = ("frechet",),
    num_kept: Annotated[int, Range(2, None)] = 50_000,
    protocol: str = "unnamed",
) -> None:
    """Writes `files/moments.safetensors` (mean and covariance, float64) and states what they are of.

    Metrics that compare features with features also get `features.npy` (float32 N x D), sFID `spatial_moments`.

    Args:
        extractor: the feature network; all that is compared with these statistics goes through the same one.
        dataset: the real images; `split` of it is read, the first `num_images` (None: all).
        statistics: a file instead: an `.npz` with `mu`, `sigma` (and `mu_s`, `sigma_s`, and `arr_0`, the images for
            precision and recall) as guided-diffusion publishes them, a `.pt` with `mu` and `cov` as Halton-MaskGIT
            does, or images (`.npz` with `arr_0`, or a folder).
        metrics: what the reference is made for.
        num_kept: features kept at most.
        protocol: name stored with every number that is compared with these statistics.
    """
    settings = Settings(metrics=tuple(metrics))
    features = FeaturePass(attempt, extractor)
    settings.check(features.network)
    path = None if statistics is None else resolve(statistics)
    given = path is not None and path.is_file() and holds_statistics(path)
    blocks, about = _images(attempt, features, dataset, split, num_images, path, settings, given)
    if not attempt.is_main:
        return
    if given and path is not None:
        moments, spatial = read_statistics(path, features.network.feature_dim)
    else:
        assert blocks is not None
        moments = moments_of(blocks)
        spatial = moments_of(blocks, "spatial") if "spatial" in settings.outputs else None
    attempt.publish(attempt.files / "moments.safetensors", lambda target: save_moments(moments, target))
    if spatial is not None:
        attempt.publish(attempt.files / "spatial_moments.safetensors", lambda target: save_moments(spatial, target))
    if settings.keeps_features and blocks is not None:
        gather(blocks, attempt.files / "features.npy", limit=num_kept)
        about["num_features"] = min(num_kept, blocks.count)
    stated = {"protocol": protocol, "extractor": features.about, "reference": about}
    write_json(attempt.files / "protocol.json", stated)
    attempt.fact(**stated)
    if blocks is not None:
        blocks.remove()


def _images(
    attempt: Attempt,
    features: FeaturePass,
    dataset: DatasetSpec | None,
    split: str,
    num_images: int | None,
    path: Path | None,
    settings: Settings,
    given: bool,
) -> tuple[Blocks | None, Block]:
    """Passes the reference's images through the network; what is stored names these images."""
    if path is not None:
        return _from_file(features, path, num_images, settings, given)
    if dataset is None:
        raise ConfigError("reference_statistics.dataset: missing; choose a dataset or give statistics=FILE")
    images = dataset.with_options(split=split).build()
    images.check()
    count = counted("reference_statistics.num_images", num_images, len(images))
    blocks = features.extract(
        "reference", count, lambda items: stack(images, items)[0], wanted=settings.outputs, label="reference features"
    )
    return blocks, {
        "dataset": dataset.name,
        "split": split,
        "num_images": count,
        "order": "first of the split",
        "image_size": images.image_size,
        "crop": getattr(images, "crop", "none"),
    }


def _from_file(
    features: FeaturePass, path: Path, num_images: int | None, settings: Settings, given: bool
) -> tuple[Blocks | None, Block]:
    about: Block = {"file": path.name, "order": "file order"}
    if path.is_file():
        with path.open("rb") as file:
            about["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if given and not settings.keeps_features:
        return None, {**about, "statistics": "as in the file"}
    images = open_images(path)
    count = counted("reference_statistics.num_images", num_images, len(images))

    def read(items: range) -> Tensor:
        return torch.from_numpy(images.read(items)).permute(0, 3, 1, 2).contiguous()

    blocks = features.extract("reference", count, read, wanted=settings.outputs, label="reference features")
    return blocks, {**about, "num_images": count, **({"statistics": "as in the file"} if given else {})}
