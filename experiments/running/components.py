"""Tokenizers and models, from a config or from the artifact of an upstream step.

A trained component's artifact holds `<component>.json` (`{"name", "module", "options", "facts"}`) beside its weights as
safetensors, so that whoever needs it can rebuild it without knowing how it was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config.specs import Input, ModelSpec, Spec, TokenizerSpec
from experiments.running.binding import arguments, load_inputs, read_request
from maskgit_core.errors import ArtifactError, ConfigError, WeightsError
from maskgit_core.files import read_json
from maskgit_core.refusals import check_codebooks

MODEL_FILE, WEIGHTS_FILE, RAW_FILE = "model.json", "model.safetensors", "raw.safetensors"


def describe(spec: Spec, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in a component's JSON file: name, module (empty: one of ours), options and derived facts."""
    return {"name": spec.name, "module": spec.module, "options": dict(spec.options), "facts": dict(facts)}


def load_tokenizer(source: Input | TokenizerSpec, device: str = "cpu", **facts: Any) -> Any:
    """A tokenizer in eval mode on `device`, without gradients.

    Args:
        source: an artifact of `train_tokenizer`, or the config of a published tokenizer.
        facts: derived facts for a tokenizer built from a config.
    Raises:
        ArtifactError, WeightsError: the artifact's files are missing or do not fit together.
    """
    if isinstance(source, Input):
        spec, facts = _described(source.files / "tokenizer.json", TokenizerSpec)
        tokenizer = spec.build(**facts)
        _load_weights(tokenizer, source.files / "weights.safetensors")
    else:
        tokenizer = source.build(**facts)
    return tokenizer.to(device).eval().requires_grad_(False)


def load_model(source: Input, device: str = "cpu", *, weights: str = "model") -> Any:
    """A trained transformer in eval mode on `device`, without gradients.

    Args:
        source: an artifact of kind `model`: a trained or imported one, or a checkpoint that a training keeps.
        weights: `model` (the moving average where there is one) or `raw` (the weights themselves).
    Raises:
        ArtifactError: it has no weights. WeightsError: they do not fit the model.
    """
    from maskgit_core.training.checkpoints import list_checkpoints, load_strictly, load_tensors, select

    model = build_model(source)
    path = source.files / {"model": WEIGHTS_FILE, "raw": RAW_FILE}[weights]
    if not path.is_file():
        path = source.files / WEIGHTS_FILE  # raw weights, trained without a moving average
    kept = [] if path.is_file() else list_checkpoints([source.files])
    if kept:
        path = kept[0]
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in source.files.glob("*.safetensors"))) or "none"
        raise ArtifactError(f"{path}: the model's weights are missing; it has [{there}]; run the step again")
    tensors, _ = load_tensors(path)
    if kept:
        averages = select(tensors, "ema") if weights == "model" else {}
        tensors = _averaged(select(tensors, "model"), averages, model)
    load_strictly(model, tensors, str(path))
    return model.to(device).eval().requires_grad_(False)


def _averaged(raw: dict[str, Any], averages: dict[str, Any], model: Any) -> dict[str, Any]:
    """A checkpoint's weights with the moving average where there is one, under all names of tied parameters."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: averages.get(names.get(name, name), tensor) for name, tensor in raw.items()}


def check_pair(model: Any, tokenizer: Any, key: str) -> None:
    """Raises `ConfigError` where a transformer and a tokenizer do not speak of the same codebook."""
    check_codebooks(key, tokenizer.codebook_size, model.codebook_size)


def manifest_digests(*sources: Any) -> str:
    """Names what the given artifacts hold now, so that pieces made from their predecessors are not taken for theirs."""
    found = [(read_json(s.folder / "manifest.json") or {}).get("digest") for s in sources if isinstance(s, Input)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def build_model(source: Input) -> Any:
    """The transformer of an artifact with fresh random weights, on the CPU."""
    spec, facts = _described(source.files / MODEL_FILE, ModelSpec)
    return spec.build(**{name: facts[name] for name in ("codebook_size", "num_tokens", "num_classes")})


def _described(path: Path, cls: type[Spec]) -> tuple[Spec, dict[str, Any]]:
    found = read_json(path)
    if not isinstance(found, dict) or "name" not in found or "options" not in found:
        raise ArtifactError(f"{path}: is missing or not a description of a component; run the step that makes it again")
    spec = cls(name=found["name"], options=found["options"], module=found.get("module", ""))
    return spec, dict(found.get("facts", {}))


def _load_weights(module: Any, path: Path) -> None:
    from maskgit_core.training.checkpoints import load_strictly, load_tensors

    if not path.is_file():
        raise WeightsError(f"{path}: the weights are missing; run the step that makes them again")
    tensors, _ = load_tensors(path)
    load_strictly(module, tensors, str(path))


def tokenizer_behind(tokens: Input) -> Any:
    """The tokenizer that a cache was made with, as `cache_tokens` was given it: an artifact, or a published one's spec.

    Raises:
        ConfigError: the cache was not made by a step of this store.
    """
    try:
        request, launch = read_request(tokens.folder)
        inputs = load_inputs(tokens.folder.parent.parent, request, launch)
        return arguments(request, launch, inputs)["tokenizer"]
    except (ArtifactError, KeyError):
        raise ConfigError(
            f"train.samples_every: no tokenizer is known behind {tokens.folder} that could draw; set it to 0"
        ) from None
