"""The thing that a training trains: a transformer that fills in masks, or a critic of what one filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from experiments.config.specs import Input, ModelSpec
from experiments.running.components import describe, load_model
from experiments.store.typed_json import Block
from maskgit_core.errors import ConfigError
from maskgit_core.layers.critic import Critic
from maskgit_core.token_groups import whole_codebook
from maskgit_core.trained import CRITIC_FILE, MODEL_FILE, build_model, description
from maskgit_core.training.critic import CriticLoss
from maskgit_core.training.recipe import CriticRecipe

Trunk = Literal["from_generator", "fresh", "generator"]


@dataclass(frozen=True)
class Learner:
    """The thing that a training trains.

    Args:
        module: its parameters are trained and its weights published.
        transformer: the `Model` whose masks and labels its batches have: the module itself, or a critic's generator.
        loss: around the module; see `Trainer`. None: a transformer's own.
        num_choices: answers among which it has to find one; with uniform guessing the loss is their logarithm.
        described: `{"name", "module", "options"}` of the published component, and file: the name of that JSON.
    """

    module: nn.Module
    transformer: Any
    loss: nn.Module | None
    num_choices: int
    described: Block
    file: str


def transformer_learner(spec: ModelSpec, facts: Block, seed: int) -> Learner:
    """A transformer of a config with fresh weights, which learns to fill in masks."""
    model = new_model(spec, facts, seed)
    return Learner(model, model, None, int(facts["codebook_size"]), describe(spec, {}), MODEL_FILE)


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


def critic_learner(source: Input, weights: str, trunk: Trunk, recipe: CriticRecipe, device: str) -> Learner:
    """A critic of a trained transformer.

    Args:
        source: the generator's artifact; weights: `model` (its moving average where there is one) or `raw`.
        trunk: the critic's transformer: of its own, beginning with the generator's weights (`from_generator`) or with
            fresh ones (`fresh`), or the generator itself, which is not trained (`generator`).
    """
    generator = load_model(source, device, weights=weights)
    is_frozen = trunk == "generator"
    own = generator if is_frozen else load_model(source, weights=weights)
    if trunk == "fresh":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            own = build_model(source.files)
    critic = Critic(own, is_frozen)
    described = {**description(source.files / MODEL_FILE), "trunk": trunk}
    return Learner(critic, generator, CriticLoss(critic, generator, recipe.temperature), 2, described, CRITIC_FILE)
