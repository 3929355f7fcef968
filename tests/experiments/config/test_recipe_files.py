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


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_is_trained_whatever_the_experiment_says(tmp_path: Path, name: str) -> None:
    told: dict[str, Any] = yaml.safe_load(Path(CONF, "recipe", f"{name}.yaml").read_text())["train"]
    found = training(tmp_path, f"recipe={name}").config
    assert {key: found[key] for key in told} == told
    must_say = "lr lr_schedule betas weight_decay decay_on label_drop label_smoothing loss_on batch_size ema_decay"
    must_say += " mask_schedule mask_kind mask_ratio_per min_mask_ratio"
    assert set(must_say.split()) <= told.keys()
    assert training(tmp_path, f"recipe={name}", "train.lr=0.5").config["lr"] == 0.5


def test_recipes_are_swept_and_unknown_ones_are_named(tmp_path: Path) -> None:
    graph = build(["experiment=quickstart", "recipe=titok,halton_2025", f"paths.store={tmp_path}"])
    assert sorted(n.request.config["batch_size"] for n in graph.nodes.values() if n.request.stage == "train") == [
        256,
        2048,
    ]
    with pytest.raises(ConfigError, match=r"recipe: there is no recipe .*halton_2025"):
        training(tmp_path, "recipe=halton_2024")
