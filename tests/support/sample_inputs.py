"""A model and a tokenizer with random weights, as their stages leave them."""

import json
from typing import Any

import pytest
import torch

from experiments.config.specs import Input, ModelSpec, TokenizerSpec
from experiments.running.components import describe
from maskgit_core.training.checkpoints import save_tensors

FACTS: dict[str, Any] = {"codebook_size": 16, "num_tokens": 20, "num_classes": 3, "grid": [4, 5]}


def make_inputs(tmp_path_factory: pytest.TempPathFactory, **changed: Any) -> tuple[Input, Input]:
    """A model and a tokenizer with random weights, as their stages leave them; `changed` facts of both."""
    torch.manual_seed(0)
    known = {**FACTS, **changed}
    model_spec = ModelSpec("prenorm", {"dim": 32, "num_layers": 2, "num_heads": 4})
    model = model_spec.build(**{k: known[k] for k in ("codebook_size", "num_tokens", "num_classes")})
    tokenizer_spec = TokenizerSpec("vq", {"codebook_size": known["codebook_size"], "code_dim": 4, "width": 8})
    tokenizer = tokenizer_spec.build(in_channels=1)
    with torch.no_grad():
        for parameter in [*model.parameters(), tokenizer.codebook]:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    made = []
    for kind, name, weights, module, spec in (
        ("model", "model.json", "model.safetensors", model, model_spec),
        ("tokenizer", "tokenizer.json", "weights.safetensors", tokenizer, tokenizer_spec),
    ):
        folder = tmp_path_factory.mktemp(kind)
        (folder / "files").mkdir()
        facts = known if kind == "model" else {"in_channels": 1}
        (folder / "files" / name).write_text(json.dumps(describe(spec, facts)))
        save_tensors(folder / "files" / weights, module.state_dict(), {})
        made.append(Input(kind, kind, folder, "f" * 64, facts, {}))
    return made[0], made[1]
