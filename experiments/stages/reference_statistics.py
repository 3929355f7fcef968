"""Statistics of real images that Fréchet distances are taken to: made once, shared by all that compare with them."""

from __future__ import annotations

from typing import Annotated

from experiments.atomic import write_json
from experiments.attempt import Attempt
from experiments.feature_pass import FeaturePass
from experiments.schema import DatasetSpec, ExtractorSpec
from maskgit_core.features import moments_of, save_moments
from maskgit_core.hints import Range
from maskgit_core.pixels import stack

VERSION = 1
PRODUCES = "reference"


def run(
    attempt: Attempt,
    *,
    dataset: DatasetSpec,
    extractor: ExtractorSpec,
    split: str = "train",
    num_images: Annotated[int | None, Range(2, None)] = None,
    protocol: str = "unnamed",
) -> None:
    """Writes `files/moments.safetensors` (mean and covariance, float64) and states what they are of.

    Args:
        dataset: the real images; `split` of it is read.
        extractor: the feature network; all that is compared with these statistics goes through the same one.
        num_images: the first so many of the split; None: all.
        protocol: name stored with every number that is compared with these statistics.
    """
    images = dataset.with_options(split=split).build()
    images.check()
    count = min(num_images or len(images), len(images))
    features = FeaturePass(attempt, extractor)
    blocks = features.extract("reference", count, lambda items: stack(images, items)[0], label="reference features")
    if not attempt.is_main:
        return
    attempt.publish(attempt.files / "moments.safetensors", lambda path: save_moments(moments_of(blocks), path))
    about = {
        "protocol": protocol,
        "extractor": features.about,
        "reference": {
            "dataset": dataset.name,
            "split": split,
            "num_images": count,
            "order": "first of the split",
            "image_size": images.image_size,
            "crop": getattr(images, "crop", "none"),
        },
    }
    write_json(attempt.files / "protocol.json", about)
    attempt.fact(**about)
    blocks.remove()
