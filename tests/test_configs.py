"""Every shipped config composes and passes the checker."""

from __future__ import annotations

import pytest

from experiments.config.checker import Checker
from experiments.config.compose import group_names, groups, resolve
from experiments.config.points import plan_configs
from experiments.planning.pipeline import build
from maskgit_core.errors import DataError, WeightsError


@pytest.mark.parametrize("name", group_names("experiment"))
def test_every_experiment_composes_and_passes_the_checker(name: str) -> None:
    try:
        _, resolved = plan_configs([f"experiment={name}"])
    except DataError as error:  # its sizes follow from a folder that it lacks
        assert len(str(error).splitlines()) == 1
        return
    for config in resolved[:50]:
        assert Checker((), groups()).steps(resolve(config))


@pytest.mark.parametrize("name", group_names("experiment"))
def test_every_experiment_plans_or_names_what_is_missing(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    try:
        graph = build([f"experiment={name}", f"paths.store={tmp_path}"])
    except (DataError, WeightsError) as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert graph.nodes
    assert not list(tmp_path.glob("*/*/request.json")), "a plan writes no step"


@pytest.mark.parametrize("name", group_names("experiment"))
def test_every_experiment_says_what_it_is_for(name: str) -> None:
    from experiments.config.compose import CONF

    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) >= 4, "an experiment file is a document: purpose, source, expected number, cost, command"
    assert "description:" in text


@pytest.mark.parametrize("sampler", ["halton", "random_order"])
def test_another_order_takes_the_place_of_the_quickstarts(sampler: str) -> None:
    """No key of the sampler that stands in the experiment is unknown to the others."""
    _, (config,) = plan_configs(["experiment=quickstart", f"sampler={sampler}"])
    assert Checker((), groups()).steps(resolve(config))["sample"].config["sampler"]["name"] == sampler
