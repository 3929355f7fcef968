"""Distribution metrics of a set of images against a reference, from one pass of the feature network over each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from experiments.config.specs import Input
from experiments.evaluation.feature_pass import Scores
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.evaluation.blocks import ReadableBlocks
from maskgit_core.evaluation.features import gather, load_moments, moments_of, streamed_inception_score
from maskgit_core.hints import Neutral, Range
from maskgit_core.metrics import kernel, neighbours
from maskgit_core.metrics.frechet import Moments, frechet_distance

MetricName = Literal[
    "frechet", "spatial_frechet", "inception_score", "kernel_distance", "precision_recall", "density_coverage"
]
#: Metrics that compare features with features: they need the reference's features, not only its moments.
FEATURE_METRICS = ("kernel_distance", "precision_recall", "density_coverage")
#: What FID's own network gives a shorter name; over other features every name carries the network's.
SHORT = {"spatial_frechet": "sfid", "kernel_distance": "kid", "kernel_distance_std": "kid_std"}


@dataclass(frozen=True)
class Settings:
    """Which metrics, and what fixes their numbers; the fields are config keys of `evaluate` and of further protocols.

    Args:
        metrics: names of `MetricName`.
        score_order: how images are assigned to the Inception score's splits (`metrics/inception_score.py`); `content`
            does not depend on the order of the file, `file` and `torch_fidelity` do.
        num_splits: of the Inception score. split_size: images in each of its splits instead (ADM).
        num_subsets, subset_size: of the kernel distance.
        num_neighbours, density_neighbours: k of precision and recall, and of density and coverage.
    """

    metrics: tuple[MetricName, ...] = ("frechet",)
    score_order: Literal["content", "torch_fidelity", "file"] = "content"
    num_splits: Annotated[int, Range(1, 1000)] = 10
    num_subsets: Annotated[int, Range(1, 10_000)] = 100
    subset_size: Annotated[int, Range(2, 100_000)] = 1000
    num_neighbours: Annotated[int, Range(1, 1000)] = 3
    density_neighbours: Annotated[int, Range(1, 1000)] = 5
    split_size: Annotated[int | None, Range(2, None), Neutral(None)] = None

    def about(self) -> dict[str, object]:
        """The settings that bear on the chosen metrics, as part of the protocol."""
        known: dict[str, dict[str, object]] = {
            "inception_score": {"order": self.score_order, **self._splits()},
            "kernel_distance": {"subsets": self.num_subsets, "subset_size": self.subset_size, "kernel": "cubic"},
            "precision_recall": {"neighbours": self.num_neighbours},
            "density_coverage": {"neighbours": self.density_neighbours},
        }
        return {name: known.get(name, {}) for name in self.metrics}

    def _splits(self) -> dict[str, int]:
        return {"splits": self.num_splits} if self.split_size is None else {"split_size": self.split_size}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that are needed of the network for every image."""
        needs = {"spatial_frechet": "spatial", "inception_score": "logits"}
        return tuple(dict.fromkeys(["features", *(needs[m] for m in self.metrics if m in needs)]))

    @property
    def keeps_features(self) -> bool:
        """True where the features themselves are compared."""
        return any(name in self.metrics for name in FEATURE_METRICS)

    def check(self, network: object) -> None:
        """Refuses metrics that the network cannot serve.

        Raises:
            ConfigError: the network gives no spatial features or no logits.
        """
        given = getattr(network, "outputs", ("features",))
        lacking = [o for o in self.outputs if o not in given]
        if lacking:
            raise ConfigError(
                f"metrics: {', '.join(self.metrics)} need {', '.join(lacking)} of the network, which gives only "
                f"{', '.join(given)}; choose an Inception protocol or fewer metrics"
            )


@dataclass(frozen=True)
class Reference:
    """The reference that samples are compared with."""

    moments: Moments
    spatial: Moments | None = None
    features: np.ndarray | None = None

    @classmethod
    def load(cls, source: Input, settings: Settings) -> Reference:
        """Reads a reference artifact.

        Raises:
            ConfigError: it was made for fewer metrics than are asked for.
        """
        folder = source.files
        spatial = folder / "spatial_moments.safetensors"
        features = folder / "features.npy"
        lacking = [spatial] if "spatial_frechet" in settings.metrics and not spatial.is_file() else []
        lacking += [features] if settings.keeps_features and not features.is_file() else []
        if lacking:
            raise ConfigError(
                f"metrics: {source.name} holds no {lacking[0].name}, which {', '.join(settings.metrics)} need; "
                "set metrics at the top level so that the reference is made for them too"
            )
        return cls(
            load_moments(folder / "moments.safetensors"),
            load_moments(spatial) if spatial.is_file() else None,
            np.load(features, mmap_mode="r", allow_pickle=False) if features.is_file() else None,
        )


def score_name(metric: str, distance_name: str) -> str:
    """The name of a row: FID's own network gives the field's names, every other network its own name as suffix."""
    if metric == "frechet":
        return distance_name
    if distance_name == "fid":
        return SHORT.get(metric, metric)
    return f"{metric}_{distance_name.removeprefix('fd_')}"


def add_scores(
    scores: Scores,
    of: str,
    blocks: ReadableBlocks,
    reference: Reference,
    settings: Settings,
    distance_name: str,
    scratch: Path,
    device: str = "cpu",
    only: Sequence[str] | None = None,
) -> None:
    """Adds one row for every chosen metric of a set (`only` these, where given).

    Args:
        blocks: the set's features, from `FeaturePass.extract`.
        scratch: folder for the mapped file of features; it is removed again.
    """
    chosen = [m for m in settings.metrics if only is None or m in only]
    values: dict[str, float] = {}
    if "frechet" in chosen:
        values["frechet"] = frechet_distance(moments_of(blocks), reference.moments)
    if "spatial_frechet" in chosen:
        assert reference.spatial is not None
        values["spatial_frechet"] = frechet_distance(moments_of(blocks, "spatial"), reference.spatial)
    if "inception_score" in chosen:
        values |= streamed_inception_score(blocks, settings.num_splits, settings.score_order, settings.split_size)
    if any(name in chosen for name in FEATURE_METRICS):
        values |= _by_features(blocks, reference, settings, chosen, scratch, device)
    for name, value in values.items():
        scores.add(score_name(name, distance_name), of, value, blocks.count)


def _by_features(
    blocks: ReadableBlocks, reference: Reference, settings: Settings, chosen: Sequence[str], scratch: Path, device: str
) -> dict[str, float]:
    if reference.features is None:
        raise DataError("metrics: the reference holds no features; make it again with the same metrics")
    path = scratch / f"{blocks.name}-features.npy"
    mapped = gather(blocks, path)
    values: dict[str, float] = {}
    try:
        if "kernel_distance" in chosen:
            kid = kernel.Metric(num_subsets=settings.num_subsets, subset_size=settings.subset_size)
            kid.update(mapped, reference.features)
            values |= kid.compute()
        if "precision_recall" in chosen or "density_coverage" in chosen:
            near = neighbours.Metric(
                num_neighbours=settings.num_neighbours,
                density_neighbours=settings.density_neighbours,
                device=device,
            )
            near.update(mapped, reference.features)
            four = near.compute()
            wanted = [("precision", "precision_recall"), ("recall", "precision_recall")]
            wanted += [("density", "density_coverage"), ("coverage", "density_coverage")]
            values |= {name: four[name] for name, metric in wanted if metric in chosen}
    finally:
        path.unlink(missing_ok=True)
    return values
