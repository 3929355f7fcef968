"""Asking a classifier what it sees: the share of real images, reconstructions and samples that it names as their class.

N images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.evaluation.feature_pass import Scores
from maskgit_core.errors import ArtifactError, DataError
from maskgit_core.files import read_json
from maskgit_core.images.image_sets import ImageSet
from maskgit_core.images.pixels import stack

NO_CLASSES = "evaluate.classifier_steps: needs a dataset with classes and samples with labels; set it to 0 or give both"
BATCH = 128


def evenly(total: int, count: int) -> Callable[[Iterable[int]], list[int]]:
    """Maps items of [0, count) to indices of [0, total), evenly spread; the identity where all are taken."""
    return lambda items: [item * total // count for item in items]


def load_classifier(files: Path, device: str) -> tuple[nn.Module, dict[str, object]]:
    """The network of a `train_classifier` step in evaluation mode, and what it was trained on.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    from maskgit_core.evaluation.residual_classifier import Classifier
    from maskgit_core.training.checkpoints import load_tensors

    told = read_json(files / "classifier.json")
    if not isinstance(told, dict):
        raise ArtifactError(f"{files / 'classifier.json'}: is missing or damaged; run train_classifier again")
    model = Classifier(**told["options"])
    tensors, _ = load_tensors(files / "classifier.safetensors")
    model.load_state_dict(tensors)
    return model.to(device).eval().requires_grad_(False), dict(told["about"])


def name_images(
    scores: Scores,
    model: nn.Module,
    about: dict[str, object],
    source: ImageSet,
    count: int,
    test: Any,
    device: str,
) -> None:
    """Adds the share that is named right of `count` samples and of as many real test images.

    Raises:
        DataError: there are no classes to ask for.
    """
    from maskgit_core.evaluation.classifier import predict

    if test is None or source.labels is None:
        raise DataError(NO_CLASSES)
    number = min(count, len(test))
    real, real_labels = stack(test, evenly(len(test), number)(range(number)))
    right = predict(model, (part.to(device) for part in real.split(BATCH))).cpu() == real_labels
    scores.add("class_accuracy", "real images", float(right.double().mean()), number, **about)
    picked = evenly(len(source), count)(range(count))
    parts = (picked[i : i + BATCH] for i in range(0, count, BATCH))
    named = predict(model, (_channels(_read(source, part), real).to(device) for part in parts)).cpu()
    wanted = torch.from_numpy(np.asarray(source.labels)[picked])
    scores.add("class_accuracy", "samples", float((named == wanted).double().mean()), count, **about)


def _read(source: ImageSet, indices: list[int]) -> Tensor:
    return torch.from_numpy(source.read(indices)).permute(0, 3, 1, 2).contiguous()


def _channels(images_BCHW: Tensor, like_NCHW: Tensor) -> Tensor:
    """Grey as RGB, or RGB averaged to grey, where the classifier was trained on the other."""
    if images_BCHW.shape[1] == like_NCHW.shape[1]:
        return images_BCHW
    if images_BCHW.shape[1] == 1:
        return images_BCHW.expand(-1, 3, -1, -1)
    return images_BCHW.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
