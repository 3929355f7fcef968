"""A sampler config names the model it was made for; used with another, the plan says so in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config.compose import group_names, read_choice
from experiments.planning.graph import Graph
from experiments.planning.pipeline import build
from experiments.planning.plan import Planner
from experiments.planning.plan_table import plan_text
from maskgit_core.errors import ConfigError


def graph(store: Path, *arguments: str) -> Graph:
    request = ["experiment=quickstart", f"paths.store={store}", *arguments]
    return build(request, digest=lambda key, value, mark: "0" * 64)


def lines(made: Graph) -> list[str]:
    return [line.strip() for line in plan_text(Planner(made).plan()).splitlines() if "published for" in line]


def test_published_settings_with_another_model_are_one_line(store: Path) -> None:
    made = graph(store, "sampler=titok_l32,halton_confidence", "sample.seed=0,1")
    assert lines(made) == [
        f"warning: sampler: its settings were published for the model {name} and are used with prenorm, for which "
        "nothing is known of them"
        for name in ("titok", "halton_v1")
    ]


def test_the_size_counts(store: Path) -> None:
    small = ["sampler=prenorm_guided", "model=prenorm", "model.num_layers=2"]
    (line,) = lines(graph(store, *small))
    assert "the model prenorm (num_layers 24, dim 768) and are used with prenorm (num_layers 2, dim 768)" in line
    assert not lines(graph(store, *small[:2], "model.num_layers=24"))


def test_the_name_of_a_model_changes_no_fingerprint(store: Path) -> None:
    told, untold = (graph(store, *asked) for asked in ([], ["+sampler.made_for={name:titok}"]))
    assert list(told.nodes) == list(untold.nodes) and lines(untold)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{name:titak}", r"sampler.made_for.name: there is no model 'titak'; did you mean titok\?"),
        ("{name:titok,depth:3}", "sampler.made_for.depth: unknown key"),
        ("titok", "sampler.made_for: found 'titok'; it must be a mapping with the `name` of a model"),
    ],
)
def test_what_names_no_model_is_refused(value: str, said: str, store: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        graph(store, f"+sampler.made_for={value}")


def test_every_published_setting_names_its_model() -> None:
    """Published are the configs whose first lines cite a model's settings: named after a model of `conf/model`."""
    published = ("maskbit", "titok", "prenorm", "maskgit", "halton_")
    names = [name for name in group_names("sampler") if name.startswith(published)]
    assert len(names) >= 21
    assert [name for name in names if "made_for" not in read_choice("sampler", name)["sampler"]] == []
