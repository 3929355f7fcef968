"""Refuses evaluations of too few pictures or samples for what is to be measured, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from experiments.config.schema.params import MISSING
from experiments.config.schema.signatures import read_stage
from experiments.planning.counts import Counts, statistics_path
from experiments.store.typed_json import Block, Options
from maskgit_core import refusals
from maskgit_core.errors import ConfigError
from maskgit_core.evaluation.reference_kinds import check_statistics

if TYPE_CHECKING:
    from experiments.planning.graph import Node

_BY_FEATURES = ("kernel_distance", "precision_recall", "density_coverage")


def check_counts(node: Node, nodes: Mapping[str, Node], counts: Counts) -> None:
    """Checks one step.

    Args:
        node: the step; stages that take no pictures and score nothing pass.
        nodes: of the graph, by fingerprint.
        counts: of the graph.

    Raises:
        ConfigError: too few samples or pictures for a metric; names the key that asks for more.
        DataError: a dataset lacks the split that the step reads, or a file holds no images.
    """
    stage, config = node.request.stage, node.request.config
    if stage == "reference_statistics":
        _check_reference(node, counts)
    elif stage == "eval_tokenizer":
        count = counts.pictures(node, split=config["split"])
        if isinstance(config.get("extractor"), Mapping) or config.get("further_extractors"):
            _check_measures(node, nodes, counts, _fewer(count, config["num_images"]), "pictures")
    elif stage == "evaluate":
        _check_evaluation(node, nodes, counts)
    elif stage == "train_classifier":
        for split in (config["train_split"], config["test_split"]):
            counts.pictures(node, split=split)
    elif stage in ("cache_tokens", "train_tokenizer", "edit"):
        count = counts.pictures(node)
        if stage == "train_tokenizer" and count is not None:
            refusals.check_at_least(f"{node.request.name}.dataset", count, 2, "pictures", "one is held out")
    elif stage == "train" and isinstance(config.get("images"), Mapping):
        counts.pictures(node, "images")


def _check_reference(node: Node, counts: Counts) -> None:
    name, config = node.request.name, node.request.config
    path = statistics_path(node)
    if path is None:
        count = counts.pictures(node, split=config["split"])
        if count is not None:
            refusals.check_at_least(f"{name}.dataset", count, 2, "pictures", "a covariance is of at least 2")
        return
    check_statistics(f"{name}.statistics", path, config["metrics"])
    if {*config["metrics"]} & {*_BY_FEATURES}:
        counts.features(node)  # refuses a file without images


def _check_evaluation(node: Node, nodes: Mapping[str, Node], counts: Counts) -> None:
    name, config = node.request.name, node.request.config
    made, given = bool(node.inputs.get("generated")), node.request.content.get("samples") is not None
    if made == given:
        raise ConfigError(
            f"{name}.samples: {'given, and a step makes samples too' if made else 'missing'}; give either a file or a "
            f"folder with {name}.samples=PATH, or a step that makes samples in needs"
        )
    count = _fewer(counts.samples(node), config["num_images"])
    real = counts.pictures(node, split=config["test_split"])
    if real is not None:
        refusals.check_at_least(f"{name}.dataset", real, 2, "real pictures", "a covariance is of at least 2")
    if node.inputs.get("classifier") and not isinstance(config.get("dataset"), Mapping):
        raise ConfigError(
            f"{name}.dataset: found null, and a classifier is asked to name real images too; choose a dataset, or "
            "leave the classifier out of needs"
        )
    if config["classifier_steps"]:
        counts.pictures(node, split=config["train_split"])
    _check_measures(node, nodes, counts, count, "samples")


def _check_measures(node: Node, nodes: Mapping[str, Node], counts: Counts, count: int | None, of: str) -> None:
    """Every protocol of a step against the number of its images, and of its reference's."""
    name = node.request.name
    if count is not None:
        refusals.check_at_least(f"{name}.num_images", count, 2, of, "a covariance is of at least 2")
    for key, settings, reference in _measures(node, nodes):
        kept = count  # of the originals of reconstructions
        if reference is not None:
            kept = counts.features(reference) if {*settings["metrics"]} & {*_BY_FEATURES} else None
        for number, what in ((count, of), (kept, "reference pictures")):
            for metric, least, why in _least(settings, what == of):
                if number is not None:
                    remedy = f"give more, or leave {metric} out of metrics"
                    refusals.check_at_least(f"{key}metrics", number, least, what, why, remedy)


def _least(settings: Options, of_samples: bool) -> Iterator[tuple[str, int, str]]:
    """Metrics of a protocol, how many images each takes at least, and why."""
    metrics, near = settings["metrics"], max(settings["num_neighbours"], settings["density_neighbours"])
    if "inception_score" in metrics and of_samples and settings["split_size"] is None:
        yield "inception_score", settings["num_splits"], f"inception_score is over {settings['num_splits']} splits"
    if "kernel_distance" in metrics:
        yield "kernel_distance", settings["subset_size"], f"kernel_distance has subsets of {settings['subset_size']}"
    for name in ("precision_recall", "density_coverage"):
        if name in metrics:
            yield name, near + 1, f"{name} looks at {near} neighbours"


def _measures(node: Node, nodes: Mapping[str, Node]) -> Iterator[tuple[str, Block, Node | None]]:
    """Of each protocol: the beginning of its keys, its settings, and its reference."""
    name, config = node.request.name, node.request.config
    fields = {p.name: p.default for p in read_stage("experiments.stages.evaluate", "evaluate").params.values()
              if p.group == "settings"}  # fmt: skip
    own = {key: config.get(key, default) for key, default in fields.items()}
    references = {nodes[p].request.config.get("protocol"): nodes[p] for p in node.inputs.get("further_references", ())}
    first = node.inputs.get("reference")
    if isinstance(config.get("extractor"), Mapping):
        yield f"{name}.", own, nodes[first[0]] if first else None
    for protocol in config.get("further_extractors") or {}:
        given = (config.get("further_settings") or {}).get(protocol) or {}
        settings = {key: default for key, default in fields.items() if default is not MISSING} | dict(given)
        yield f"{name}.further_settings.{protocol}.", settings, references.get(protocol)


def _fewer(count: int | None, asked: int | None) -> int | None:
    return min((n for n in (count, asked) if n is not None), default=None)
