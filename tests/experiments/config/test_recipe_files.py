"""`recipe=NAME`: every published training recipe is one choice, over any experiment."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.checker import StepRequest
from experiments.config.compose import CONF
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError

RECIPES = sorted(path.stem for path in Path(CONF, "recipe").glob("*.yaml"))


def training(store: Path, *arguments: str) -> StepRequest:
    graph = build(["experiment=quickstart", *arguments, f"paths.store={store}"], digest=lambda *_: "0" * 64)
    return next(node.request for node in graph.nodes.values() if node.request.stage == "train")


#: Recipes whose loss is over K + 1 logits need a model that has one for the mask.
NEEDS = {"halton_2023": ["model=halton_tiny"], "halton_2025": ["model=halton_tiny"]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_is_trained_whatever_the_experiment_says(tmp_path: Path, name: str) -> None:
    told: dict[str, Any] = yaml.safe_load(Path(CONF, "recipe", f"{name}.yaml").read_text())["train"]
    needs = NEEDS.get(name, [])
    found = training(tmp_path, f"recipe={name}", *needs).config
    assert {key: found[key] for key in told} == told
    must_say = "lr lr_schedule betas weight_decay decay_on label_drop label_smoothing loss_on batch_size ema_decay"
    must_say += " mask_schedule mask_kind mask_ratio_per min_mask_ratio"
    assert set(must_say.split()) <= told.keys()
    assert training(tmp_path, f"recipe={name}", "train.lr=0.5", *needs).config["lr"] == 0.5


@pytest.mark.parametrize("name", NEEDS)
def test_a_recipe_sets_what_its_loss_needs_or_names_the_models_that_have_it(tmp_path: Path, name: str) -> None:
    assert training(tmp_path, f"recipe={name}", "model=halton_tiny").config["model"]["mask_logit"] is True
    assert training(tmp_path, "recipe=maskgit", "model=halton_tiny").config["model"]["mask_logit"] is False
    with pytest.raises(
        ConfigError, match=r"model.mask_logit: unknown key; prenorm has no such option, .*halton.*~model.mask_logit"
    ):
        training(tmp_path, f"recipe={name}")
    assert training(tmp_path, f"recipe={name}", "~model.mask_logit").config["loss_on"] == "all"


def test_recipes_are_swept_and_unknown_ones_are_named(tmp_path: Path) -> None:
    graph = build(["experiment=quickstart", "recipe=titok,maskgit_pytorch", f"paths.store={tmp_path}"])
    assert sorted(n.request.config["batch_size"] for n in graph.nodes.values() if n.request.stage == "train") == [
        256,
        2048,
    ]
    with pytest.raises(ConfigError, match=r"recipe: there is no recipe .*halton_2025"):
        training(tmp_path, "recipe=halton_2024")
