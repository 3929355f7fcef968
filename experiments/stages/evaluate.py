"""Scores samples against real images, with the floor and the ceiling that give the number its place.

The floor is what real test images score, the ceiling what an untrained model's samples score; every number keeps the
protocol under which it was taken.

Keywords of `run`:

    reference: statistics of real images (stage `reference_statistics`).
    extractor: the feature network the reference was made with.
    generated: the samples to score, made upstream.
    samples: somebody else's samples instead: an `.npz` with `arr_0`, or a folder of pictures.
    ceiling: samples of an untrained model, scored beside.
    tokenizer_scores: its Fréchet distance of reconstructions is shown beside.
    classifier: names real images and samples (stage `train_classifier`).
    dataset: real images; `test_split` gives the floor, `train_split` the classifier's lessons.
    num_images: of each set, evenly spread over the file; None: all of the samples.
    settings: its fields are keys of this stage; floor and ceiling get the Fréchet distance alone.
    classifier_steps: training steps of a small classifier that names them, where there is none upstream; 0: none.
    seed: of the classifier.
    protocol: name of the protocol, stored with every number.
    further_extractors, further_settings: more protocols by name, each with its network and settings; every distinct
        network sees the samples once.
    further_references: the references made under those protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from experiments.config.specs import DatasetSpec, ExtractorSpec, Input
from experiments.evaluation.class_names import NO_CLASSES, evenly, load_classifier, name_images
from experiments.evaluation.feature_pass import Scores, publish_scores
from experiments.evaluation.measures import Measure, Network, counted, further_measures, networks
from experiments.evaluation.set_scores import Reference, Settings, add_scores
from experiments.running.attempt import Attempt
from maskgit_core.content import resolve
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.evaluation.blocks import Blocks
from maskgit_core.files import read_json
from maskgit_core.hints import Content, Kind, Neutral, Range
from maskgit_core.images.image_sets import ImageSet, open_images, sorted_by_class
from maskgit_core.images.pixels import stack

VERSION = 1
PRODUCES = "scores"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    reference: Annotated[Input, Kind("reference")],
    extractor: ExtractorSpec,
    generated: Annotated[Input | None, Kind("samples")] = None,
    ceiling: Annotated[Input | None, Kind("samples")] = None,
    tokenizer_scores: Annotated[Input | None, Kind("tokenizer_scores")] = None,
    classifier: Annotated[Input | None, Kind("classifier")] = None,
    samples: Content[str | None] = None,
    dataset: DatasetSpec | None = None,
    train_split: str = "train",
    test_split: str = "test",
    num_images: Annotated[int | None, Range(2, None)] = None,
    settings: Settings,
    classifier_steps: Annotated[int, Range(0, None)] = 0,
    seed: int = 0,
    protocol: str = "unnamed",
    further_references: Annotated[Sequence[Input], Kind("reference")] = (),
    further_extractors: dict[str, ExtractorSpec] | None = None,
    further_settings: Annotated[dict[str, dict[str, object]] | None, Neutral(None)] = None,
) -> None:
    """Writes `files/scores.json`; the keywords are explained above."""
    source = _open(generated, samples)
    count = counted("evaluate.num_images", num_images, len(source))
    measures = [Measure(protocol, extractor, settings, reference)]
    measures += further_measures(further_extractors, further_settings, further_references, needs_reference=True)
    loaded = networks(attempt, measures)
    sets = {"samples": (source, generated)}
    if ceiling is not None:
        sets["untrained model"] = (open_images(ceiling.files / "images.npz"), ceiling)
    test = None if dataset is None else dataset.with_options(split=test_split).build()
    passed = [_pass_sets(network, sets, test, count) for network in loaded]
    if not attempt.is_main:
        return
    by_protocol = [
        _scores(attempt, network, measure, blocks, source, tokenizer_scores)
        for network, blocks in zip(loaded, passed, strict=True)
        for measure in network.measures
    ]
    if classifier is not None:
        namer, about = load_classifier(classifier.files, attempt.device)
        name_images(by_protocol[0], namer, about, source, count, test, attempt.device)
    elif classifier_steps:
        namer, about = _trained(dataset, train_split, classifier_steps, seed)
        name_images(by_protocol[0], namer, about, source, count, test, "cpu")
    publish_scores(attempt, by_protocol, "samples", loaded[0].features.network.distance_name, count)
    for network in loaded:
        for blocks in network.features.passed:
            blocks.remove()


def _scores(
    attempt: Attempt,
    network: Network,
    measure: Measure,
    passed: dict[str, Blocks],
    source: ImageSet,
    tokenizer_scores: Input | None,
) -> Scores:
    """All numbers under one protocol, from what its network gave of each set."""
    assert measure.reference is not None
    scores = Scores(measure.protocol, _protocol(measure, network, source))
    target = Reference.load(measure.reference, measure.settings)
    name = network.features.network.distance_name
    for of, blocks in passed.items():
        only = None if of == "samples" else ("frechet",)
        add_scores(scores, of, blocks, target, measure.settings, name, attempt.parts, attempt.device, only)
    _beside(scores, name, tokenizer_scores, passed["samples"].count)
    _place(scores, name)
    return scores


def _protocol(measure: Measure, network: Network, source: ImageSet) -> dict[str, object]:
    assert measure.reference is not None
    return {
        "reference": dict(measure.reference.facts["reference"]),
        "extractor": network.features.about,
        "order": "evenly spread over the set",
        "metrics": measure.settings.about(),
        "sorted_by_class": sorted_by_class(source.labels),
    }


def _pass_sets(
    network: Network, sets: dict[str, tuple[ImageSet, Input | None]], test: Any, count: int
) -> dict[str, Blocks]:
    """Every set through the network: all that the metrics need of the samples, pooled features of floor and ceiling."""
    passed, extract = {}, network.features.extract
    for of, (images, made) in sets.items():
        wanted = network.outputs if of == "samples" else ("features",)
        number = min(count, len(images))
        name = network.mark + of.replace(" ", "_")
        passed[of] = extract(name, number, _reader(images, number), made, wanted=wanted, label=of)
    if test is not None:
        test.check()
        number = min(count, len(test))
        spread = evenly(len(test), number)
        passed["real images"] = extract(
            f"{network.mark}real", number, lambda items: stack(test, spread(items))[0], label="real images"
        )
    return passed


def _open(generated: Input | None, samples: str | None) -> ImageSet:
    if generated is not None and samples is None:
        return open_images(generated.files / "images.npz")
    if generated is None and samples is not None:
        return open_images(resolve(samples))
    raise ConfigError("evaluate.samples: give either a file or folder, or a step that makes samples in needs")


def _reader(images: ImageSet, count: int) -> Any:
    spread = evenly(len(images), count)

    def read(items: range) -> Tensor:
        pixels = images.read(spread(items))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    return read


def _beside(scores: Scores, name: str, tokenizer_scores: Input | None, count: int) -> None:
    """The tokenizer's own distance: the samples cannot be nearer than what their decoder makes of real images."""
    if tokenizer_scores is None:
        return
    told = read_json(tokenizer_scores.files / "scores.json") or {}
    for row in told.get("scores", []):
        same = row["name"] == name and row["protocol"] == scores.protocol_name
        if same and row["of"] == "reconstructions":
            more = {} if row["num_images"] == count else {"note": "another number of images: not comparable"}
            scores.add(name, "reconstructions", row["value"], row["num_images"], **more)


def _place(scores: Scores, name: str) -> None:
    """(samples - floor) / (ceiling - floor), where all three were taken over the same number of images."""
    rows = {row["of"]: row for row in scores.rows if row["name"] == name}
    three = [rows.get(of) for of in ("samples", "real images", "untrained model")]
    if any(row is None for row in three) or len({row["num_images"] for row in three if row}) != 1:
        return
    value, floor, ceiling = (row["value"] for row in three if row)
    if ceiling > floor:
        scores.add("floor_to_ceiling", "samples", (value - floor) / (ceiling - floor), rows["samples"]["num_images"])


def _trained(
    dataset: DatasetSpec | None, train_split: str, num_steps: int, seed: int
) -> tuple[torch.nn.Module, dict[str, object]]:
    """A small classifier, trained here, and what it was trained on."""
    from maskgit_core.evaluation.classifier import train_classifier

    if dataset is None:
        raise DataError(NO_CLASSES)
    train = dataset.with_options(split=train_split).build()
    images, labels = stack(train, range(len(train)))
    model = train_classifier(images, labels, train.num_classes, num_steps=num_steps, seed=seed)
    return model, {"classifier_steps": num_steps, "trained_on": f"{len(train)} images of {dataset.name} {train_split}"}
