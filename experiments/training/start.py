"""The beginning of a training: fresh weights, or the state that another one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.config.specs import ModelSpec
from experiments.store.typed_json import Block
from maskgit_core.errors import ArtifactError, ConfigError
from maskgit_core.token_groups import whole_codebook
from maskgit_core.training.checkpoints import list_checkpoints


def find_state(files: Path) -> Path:
    """The full state among the files of a finished model or a kept checkpoint.

    Raises:
        ArtifactError: there is none; the model was imported, not trained.
    """
    checkpoints = list_checkpoints([files])
    if not checkpoints:
        raise ArtifactError(f"{files}: holds no training state to go on from; name a model that was trained here")
    return checkpoints[0]


def new_model(spec: ModelSpec, facts: Block, seed: int) -> Any:
    """A model with fresh weights that are a function of its config and `seed`."""
    known = {name: facts[name] for name in ("codebook_size", "num_tokens", "num_classes")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build(**known)
    if whole_codebook(model) < facts["codebook_size"]:
        raise ConfigError(
            f"model: {spec.name} knows {whole_codebook(model)} tokens but the tokenizer has {facts['codebook_size']}; "
            "use the tokenizer the model is made for"
        )
    return model
