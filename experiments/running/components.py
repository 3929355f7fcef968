"""Tokenizers and models, from a config or from the artifact of an upstream step.

A trained component's artifact holds `<component>.json` (`{"name", "module", "options", "facts"}`) beside its weights as
safetensors, so that whoever needs it can rebuild it without knowing how it was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from experiments.config.specs import Input, Spec, TokenizerSpec
from experiments.running.binding import stage_arguments
from experiments.store.documents import Manifest
from maskgit_core.errors import ArtifactError, ConfigError
from maskgit_core.refusals import check_codebooks


def describe(spec: Spec, facts: Mapping[str, object]) -> dict[str, object]:
    """The content of a component's JSON file: name, module (empty: one of ours), options and derived facts."""
    return {"name": spec.name, "module": spec.module, "options": dict(spec.options), "facts": dict(facts)}


def load_tokenizer(source: Input | TokenizerSpec, device: str = "cpu", **facts: object) -> Any:
    """A tokenizer in eval mode on `device`, without gradients.

    Args:
        source: an artifact of `train_tokenizer`, or the config of a published tokenizer.
        facts: derived facts for a tokenizer built from a config.
    Raises:
        ArtifactError, WeightsError: the artifact's files are missing or do not fit together.
    """
    from maskgit_core import trained

    if isinstance(source, Input):
        return trained.load_tokenizer(source.files, device)
    return source.build(**facts).to(device).eval().requires_grad_(False)


def load_model(source: Input, device: str = "cpu", *, weights: str = "model") -> Any:
    """A trained transformer in eval mode on `device`, without gradients; see `maskgit_core.trained.load_model`."""
    from maskgit_core import trained

    return trained.load_model(source.files, device, weights=weights)


def check_pair(model: object, tokenizer: Any, key: str) -> None:
    """Raises `ConfigError` where a transformer and a tokenizer do not speak of the same codebook."""
    from maskgit_core.token_groups import whole_codebook

    check_codebooks(key, tokenizer.codebook_size, whole_codebook(model))


def manifest_digests(*sources: object) -> str:
    """Names what the given artifacts hold now, so that pieces made from their predecessors are not taken for theirs."""
    digests = [manifest.digest if (manifest := Manifest.read(s.folder)) else None
               for s in sources if isinstance(s, Input)]  # fmt: skip
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:12]


def tokenizer_behind(tokens: Input) -> object:
    """The tokenizer that a cache was made with, as `cache_tokens` was given it: an artifact, or a published one's spec.

    Raises:
        ConfigError: the cache was not made by a step of this store.
    """
    try:
        return stage_arguments(tokens.folder)["tokenizer"]
    except (ArtifactError, KeyError):
        raise ConfigError(
            f"train.samples_every: no tokenizer is known behind {tokens.folder} that could draw; set it to 0"
        ) from None
