"""Tokenizers and models, from a config or from the artifact of an upstream step.

A trained component's artifact holds `<component>.json` (`{"name", "module", "options", "facts"}`) beside its weights as
safetensors, so that whoever needs it can rebuild it without knowing how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.atomic import read_json
from experiments.schema import Input, ModelSpec, Spec, TokenizerSpec
from maskgit_core.errors import ArtifactError, WeightsError

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


def load_model(source: Input, device: str = "cpu", *, weights: str = WEIGHTS_FILE) -> Any:
    """A trained transformer in eval mode on `device`, without gradients.

    Args:
        source: an artifact of kind `model`.
        weights: which of its files: the moving average (`model.safetensors`), the last weights (`raw.safetensors`), or
            a kept checkpoint.
    """
    model = build_model(source)
    path = source.files / weights
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in source.files.glob("*.safetensors")))
        raise ArtifactError(f"{path}: the model has no such weights; it has [{there}]")
    _load_weights(model, path)
    return model.to(device).eval().requires_grad_(False)


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
    from maskgit_core.checkpoints import load_strictly, load_tensors

    if not path.is_file():
        raise WeightsError(f"{path}: the weights are missing; run the step that makes them again")
    tensors, _ = load_tensors(path)
    load_strictly(module, tensors, str(path))
