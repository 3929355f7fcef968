"""Refuses evaluations whose reference is made with another network or for fewer metrics, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskgit_core.errors import ConfigError

if TYPE_CHECKING:
    from experiments.planning.graph import Node

#: Metrics that need more of a reference than pooled moments, and those that give the same.
_NEEDS = {
    "spatial_frechet": ("spatial_frechet",),
    "kernel_distance": ("kernel_distance", "precision_recall", "density_coverage"),
    "precision_recall": ("kernel_distance", "precision_recall", "density_coverage"),
    "density_coverage": ("kernel_distance", "precision_recall", "density_coverage"),
}


def check_reference(node: Node, reference: Node) -> None:
    """Compares a step that measures with the reference statistics that it needs.

    Raises:
        ConfigError: names the key that differs or the metric that the reference is not made for.
    """
    ours, theirs = node.request, reference.request
    if theirs.stage != "reference_statistics" or not isinstance(ours.config.get("extractor"), dict):
        return
    own, made_with = ours.identity.get("extractor"), theirs.identity.get("extractor")
    if not isinstance(own, dict) or not isinstance(made_with, dict):
        return
    differing = [key for key in sorted({*own, *made_with}) if own.get(key) != made_with.get(key)]
    if ours.weights.get("extractor.weights") != theirs.weights.get("extractor.weights"):
        differing.append("weights")
    if differing:
        raise ConfigError(
            f"{ours.name}.extractor: {', '.join(differing)} differ(s) from {theirs.name}.extractor; numbers would mean "
            "nothing, so set extractor at the top level for both"
        )
    if theirs.content.get("statistics") is not None:  # what a file holds is known when it is read
        return
    made_for = theirs.config.get("metrics", ())
    for metric in ours.config.get("metrics", ()):
        if metric in _NEEDS and not {*_NEEDS[metric]} & {*made_for}:
            raise ConfigError(
                f"{ours.name}.metrics: {metric} needs a reference made for it, and {theirs.name}.metrics is "
                f"[{', '.join(made_for)}]; set metrics at the top level for both"
            )
