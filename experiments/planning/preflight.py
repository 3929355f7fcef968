"""Preflight: facts of artifacts that do not exist yet, and the requests that they already rule out.

A class that the model will never know must not wait for the end of a week's training. Facts of an artifact (number of
classes, tokens, codebook entries) follow from configs: an option of that name (`codebook_size`), a constant of the
component's file (`NUM_CLASSES`, `DOWNSAMPLE_FACTOR`), the registry's facts of published weights; else from the manifest
of what is finished; else they are unknown, and the stage itself refuses when it starts. Nothing is imported but
datasets, which are light.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

from experiments.config.schema.params import MISSING
from experiments.config.schema.signatures import read_component
from experiments.planning.count_checks import check_counts
from experiments.planning.counts import Counts
from experiments.planning.reference_checks import check_reference
from experiments.store.documents import Manifest
from maskgit_core import refusals
from maskgit_core.content import resolve
from maskgit_core.errors import ArtifactError, DataError
from maskgit_core.weights.registry import fixed_image_size, is_published

if TYPE_CHECKING:
    from experiments.planning.graph import Node

#: Folder of a kind of component -> the class in its files and the facts that it may tell; any other option or constant
#: of theirs is their own business.
_TOLD_BY = {
    "tokenizers": ("Tokenizer", ("codebook_size", "downsample_factor", "one_dimensional", "image_size")),
    "datasets": ("Dataset", ("num_classes", "image_size")),
    "models": ("Model", ("splits",)),
}
#: Facts of pictures, not of the tokenizer that encodes them.
_OF_DATA = ("num_classes", "image_size", "num_tokens")


def check(nodes: Mapping[str, Node], *, ranks_count: bool = True) -> None:
    """Refuses what cannot work.

    Args:
        nodes: of a graph, by fingerprint, upstream first.
        ranks_count: False where the launcher runs one process whatever `resources` ask for.

    Raises:
        ConfigError: names the key, what was found and what is allowed.
    """
    known_facts, counts = KnownFacts(nodes), Counts(nodes)
    for node in nodes.values():
        if node.maker is not None or not node.request.module.startswith("experiments.stages."):
            continue
        if node.request.stage in ("sample", "edit"):
            _check_sampling(node, known_facts)
        elif node.request.stage in ("train", "train_critic"):
            _check_training(node, known_facts, ranks_count)
        elif node.request.stage in ("evaluate", "eval_tokenizer") and node.inputs.get("reference"):
            check_reference(node, nodes[node.inputs["reference"][0]])
        elif node.request.stage == "train_tokenizer":
            _check_tokenizer_training(node, known_facts, ranks_count)
        _check_images(node, known_facts)
        check_counts(node, nodes, counts)


def fewer_images(nodes: Mapping[str, Node]) -> list[str]:
    """A line for each evaluation of more images than its samples will be, which measures what there is."""
    lines = []
    for node in nodes.values():
        wanted, made = node.request.config.get("num_images"), node.inputs.get("generated", ())
        for source in (nodes[fingerprint].request for fingerprint in made if node.request.stage == "evaluate"):
            there = source.config.get("num_samples")
            if isinstance(wanted, int) and isinstance(there, int) and wanted > there:
                lines.append(
                    f"warning: {node.request.name}.num_images: {wanted} asked for, {source.name}.num_samples is "
                    f"{there}; {there} are used"
                )
    return lines


def _check_sampling(node: Node, known_facts: KnownFacts) -> None:
    step, config = node.request.name, node.request.config
    if node.request.stage == "edit":
        refusals.check_region(config["region"], "mask" in node.request.content, config["left"], config["right"])
        refusals.check_places(f"{step}.tokenizer", known_facts.of_param(node, "tokenizer", "one_dimensional") is True)
    if node.request.stage == "sample":
        has_model, has_tokens = (bool(node.inputs.get(name)) for name in ("model", "tokens"))
        refusals.check_weights(step, has_model, has_tokens, config["untrained"])
    model = (node.inputs.get("model") or node.inputs["tokens"])[0]
    num_classes, num_tokens = (known_facts.fact(model, name) for name in ("num_classes", "num_tokens"))
    sampler = config["sampler"]
    constants = read_component(node.request.modules["sampler"], "Sampler", "sampler").constants
    refusals.check_critic(bool(constants.get("NEEDS_CRITIC")), bool(node.inputs.get("critic")), f"{step}.sampler.name")
    if num_classes is not MISSING:
        if node.request.stage == "sample":
            refusals.check_classes(f"{step}.classes", config["classes"], num_classes)
        elif config["label"] is not None:
            refusals.check_classes(f"{step}.label", [config["label"]], num_classes)
        refusals.check_guidance(sampler.get("guidance_scale", 1.0), num_classes)
    if num_tokens is not MISSING:
        splits = known_facts.fact(model, "splits")
        refusals.check_steps(sampler.get("num_steps", 1), num_tokens * (1 if splits is MISSING else splits))
    known, codebook_size = (
        known_facts.fact(model, "codebook_size"),
        known_facts.of_param(node, "tokenizer", "codebook_size"),
    )
    if MISSING not in (known, codebook_size):
        refusals.check_codebooks(f"{step}.tokenizer", codebook_size, known)


def _check_training(node: Node, known_facts: KnownFacts, ranks_count: bool) -> None:
    step, config = node.request.name, node.request.config
    if ranks_count:
        refusals.check_batch(config["batch_size"], int(node.request.resources.get("ranks") or 1), f"{step}.batch_size")
    execution = node.request.execution
    looks = [key for key in ("held_out_share", "samples_every") if config.get(key) or execution.get(key)]
    refusals.check_sharding(bool(execution.get("fsdp")), config["optimizer"], config["precision"], looks, step)
    if node.inputs.get("tokens"):
        refusals.check_mapped(node.request.execution.get("num_workers") or 0, f"{step}.num_workers")
    for source in node.inputs.get("continue_from", ()):
        done = known_facts.num_train_steps(source)
        if done is not MISSING:
            refusals.check_goes_on(config["num_train_steps"], done, f"{step}.num_train_steps")
    num_classes = known_facts.fact(node.fingerprint, "num_classes")
    if num_classes is not MISSING and execution.get("samples_every"):
        refusals.check_classes(f"{step}.samples_classes", execution["samples_classes"], num_classes)
        refusals.check_guidance(execution["samples_guidance"], num_classes, f"{step}.samples_guidance")


def _check_tokenizer_training(node: Node, known_facts: KnownFacts, ranks_count: bool) -> None:
    step, config = node.request.name, node.request.config
    tokenizer = config["tokenizer"]
    refusals.check_quantizer(
        tokenizer.get("quantizer", "vq"), tokenizer.get("codebook_size", 1024),
        tokenizer.get("normalised", False), tokenizer.get("fsq_levels", []),
    )  # fmt: skip
    ranks = int(node.request.resources.get("ranks") or 1) if ranks_count else 1
    refusals.check_parts(config["batch_size"], ranks, config.get("accumulate", 1), step)
    size, factor = (
        known_facts.of_param(node, p, n) for p, n in (("dataset", "image_size"), ("tokenizer", "downsample_factor"))
    )
    if MISSING not in (size, factor):
        refusals.check_crop(config.get("crop_size"), size, factor, step)


def _check_images(node: Node, known_facts: KnownFacts) -> None:
    """The side of what a step encodes, against the tokenizer that encodes it."""
    step, config, request = node.request.name, node.request.config, node.request
    tokenizer, images = ("image_tokenizer", "images") if request.stage == "train" else ("tokenizer", "dataset")
    dataset = config.get(images)
    if request.stage not in ("eval_tokenizer", "cache_tokens", "train", "edit", "train_tokenizer"):
        return
    size = known_facts.of_param(node, images, "image_size")
    if not isinstance(dataset, Mapping) or not isinstance(size, int):
        return
    crop = config.get("image_crop_size" if request.stage == "train" else "crop_size")
    factor = known_facts.of_param(node, tokenizer, "downsample_factor")
    spec, module = config.get(tokenizer), request.modules.get(tokenizer, "")
    only = None
    weights = request.weights.get(f"{tokenizer}.weights")
    if isinstance(spec, Mapping) and is_published(weights):  # of a file of one's own the step tells
        only = fixed_image_size(module.removeprefix("maskgit_core.").replace(".", "/"), weights)
    key = f"{step}.{'crop_size' if crop else f'{images}.image_size'}"
    refusals.check_image_size(key, crop or size, factor if isinstance(factor, int) else None, only)


class KnownFacts:
    """Facts of the artifacts of a graph; `MISSING` where a fact cannot be known yet."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._known: dict[tuple[str, str], object] = {}

    def fact(self, fingerprint: str, name: str) -> Any:
        """`num_tokens` or any fact of `_TOLD_BY` of an artifact."""
        key = (fingerprint, name)
        if key not in self._known:
            self._known[key] = self._found(self._nodes[fingerprint], name)
        return self._known[key]

    def of_param(self, node: Node, param: str, name: str) -> Any:
        """The same of what fills one parameter of a step, be it an artifact or a component."""
        if node.inputs.get(param):
            return self.fact(node.inputs[param][0], name)
        return _of_component(node, param, name) if isinstance(node.request.config.get(param), Mapping) else MISSING

    def num_train_steps(self, fingerprint: str) -> Any:
        """After how many steps of training a model is taken."""
        request = self._nodes[fingerprint].request
        at = request.name.rpartition("@")[2]
        if "@" in request.name and at.isdigit():
            return int(at)
        return request.config.get("num_train_steps", MISSING)

    def _found(self, node: Node, name: str) -> object:
        config = node.request.config
        if name in config and not isinstance(config[name], Mapping):
            return config[name]
        if name == "num_tokens":
            fact = self._num_tokens(node)
        else:
            own = (_of_component(node, param, name) for param in config if isinstance(config[param], Mapping))
            # what a tokenizer was trained on says nothing of the pictures it is used for
            passed = (p for p in node.upstream if name not in _OF_DATA or self._nodes[p].request.kind != "tokenizer")
            fact = next(filter(_is_known, chain(own, (self.fact(p, name) for p in passed))), MISSING)
        if fact is MISSING:
            with suppress(ArtifactError):  # damage is reported by whoever uses the step
                manifest = Manifest.read(node.folder)
                fact = manifest.facts.get(name, MISSING) if manifest else MISSING
        return fact

    def _num_tokens(self, node: Node) -> object:
        config = node.request.config
        if "grid_height" in config and "grid_width" in config:
            return config["grid_height"] * config["grid_width"]
        if node.request.stage != "cache_tokens" and "images" not in config:
            return next(filter(_is_known, (self.fact(upstream, "num_tokens") for upstream in node.upstream)), MISSING)
        size, factor = self.fact(node.fingerprint, "image_size"), self.fact(node.fingerprint, "downsample_factor")
        if not isinstance(size, int) or not isinstance(factor, int) or size % factor:
            return MISSING
        return (size // factor) ** 2


def _is_known(value: object) -> bool:
    return value is not MISSING


def _of_component(node: Node, param: str, name: str) -> object:
    """A fact of a component of a step's config."""
    component, module = node.request.config[param], node.request.modules.get(param)
    class_name, told = _TOLD_BY.get(module.split(".")[1], ("", ())) if module is not None else ("", ())
    if module is None or name not in told:
        return MISSING
    if name in component:
        return component[name]
    constants = read_component(module, class_name, param).constants
    if name.upper() in constants and not component.get("partial"):  # `partial`: whatever part of a dataset is there
        return constants[name.upper()]
    if (weights := node.request.weights.get(f"{param}.weights")) is not None:
        from maskgit_core.weights.registry import registry

        entry = registry().get(weights)
        return MISSING if entry is None else entry.facts.get(name, MISSING)
    if name == "num_classes" and module.startswith("maskgit_core.datasets."):
        return _counted(node, param, module)
    return MISSING


def _counted(node: Node, param: str, module: str) -> object:
    """The number of classes that a folder of pictures shows."""
    count = getattr(import_module(module), "count_classes", None)
    root = node.request.content.get(f"{param}.root")
    if count is None or root is None:
        return MISSING
    try:
        return count(resolve(root), node.request.config[param].get("split", ""))
    except DataError:
        return MISSING
