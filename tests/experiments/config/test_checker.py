"""The checker: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import LAB

from experiments.config.checker import Checker
from experiments.config.compose import groups
from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import Param
from experiments.config.schema.signatures import read_stage
from experiments.config.schema.sources import FOLDERS, Sources
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError

STORE = "paths.store=/nonexistent/store"


def graph(*overrides: str, experiment: str = "chain", digest: Any = None) -> Any:
    return build([f"experiment={experiment}", STORE, *overrides], [LAB], digest)


def refused(*overrides: str, experiment: str = "chain") -> str:
    with pytest.raises(ConfigError) as caught:
        graph(*overrides, experiment=experiment)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_come_from_the_signature() -> None:
    request = next(iter(graph().nodes.values())).request
    assert request.config == {"count": 5, "scale": 1.0, "form": "plain", "offset": 0}
    assert request.execution == {"pause_s": 0.0, "fail": None, "needs_mb": 0.0, "holds_mb": 0.0}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("numbers.cuont=3", "numbers.cuont: unknown key; did you mean count?"),
        ("nmubers.count=3", "nmubers: unknown key; did you mean numbers?"),
        ("numbers.count=three", "numbers.count: found 'three' (text); it must be int"),
        ("numbers.count=1.5", "numbers.count: found 1.5 (float); it must be int"),
        ("numbers.count=0", "numbers.count: 0 is out of range; allowed: 1 <= count <= 10000"),
        ("numbers.form=sqared", "numbers.form: found 'sqared'; did you mean squared?"),
        ("numbers.scale=nan", "numbers.scale: nan has no canonical form"),
        ("numbers.count=null", "numbers.count: found None (null); it must be int"),
        (
            "pipeline.steps.total.needs=[nmubers]",
            "pipeline.steps.total.needs: there is no step 'nmubers'; did you mean",
        ),
        (
            "pipeline.steps.total.stage=ttotal",
            "pipeline.steps.total.stage: there is no stage 'ttotal'; did you mean total?",
        ),
        (
            "pipeline.steps.numbers.needs=[total]",
            "pipeline.steps.numbers.needs: total makes total; numbers takes nothing",
        ),
        ("pipeline.steps.total.nedes=[numbers]", "pipeline.steps.total.nedes: unknown key; did you mean needs?"),
        ("resources.numbers.cpu=3", "resources.numbers.cpu: unknown key; did you mean cpus_per_task?"),
        ("resources.numbers.ranks=-1", "resources.numbers.ranks: found -1; it must be a number >= 0"),
        ("experiment=../../../etc/passwd", "experiment: '../../../etc/passwd' is not a name"),
        ("experiment=chian", "experiment: there is no experiment 'chian'; did you mean chain?"),
        ("numbers.numbers=1", "numbers.numbers: unknown key"),
        ("total.numbers=1", "total.numbers: is the artifact of an upstream step; name that step in needs instead"),
        ("justaword", "justaword: not understood; write key=value"),
        ("launcher=slrum", "launcher: there is no launcher 'slrum'"),
    ],
)
def test_refusals_name_the_key_and_the_remedy(override: str, said: str) -> None:
    assert refused(override).startswith(said)


def test_a_cycle_is_refused_by_name() -> None:
    text = refused("pipeline.steps.left={stage: total, needs: [numbers]}",
                   "pipeline.steps.a={stage: difference, needs: {left: left, right: b}}",
                   "pipeline.steps.b={stage: difference, needs: {left: left, right: a}}")  # fmt: skip
    # a difference is not a total: the wrong kind is named before the cycle can be
    assert text.startswith("pipeline.steps.a.needs.right: b makes difference, not total")


def test_a_cycle_of_right_kinds_is_refused(tmp_path: Path) -> None:
    stages = tmp_path / "looplab" / "stages"
    stages.mkdir(parents=True)
    (stages.parent / "__init__.py").touch()
    (stages / "__init__.py").touch()
    (stages / "loop.py").write_text(
        "from typing import Annotated\nfrom experiments.config.specs import Input\n"
        "from maskgit_core.hints import Kind\n"
        'PRODUCES = "loop"\ndef run(attempt, *, other: Annotated[Input, Kind("loop")]) -> None: ...\n'
    )
    config = {"pipeline": {"steps": {"a": {"stage": "loop", "needs": ["b"]}, "b": {"stage": "loop", "needs": "a"}}}}
    import sys

    from experiments.planning.pipeline import topological

    sys.path.insert(0, str(tmp_path))
    try:
        requests = Checker(["looplab"]).steps(config)
        with pytest.raises(ConfigError, match=r"pipeline\.steps\.a\.needs: a cycle \(a -> b -> a\)"):
            topological(requests)
    finally:
        sys.path.remove(str(tmp_path))


def test_two_needs_of_one_kind_ask_for_names() -> None:
    text = refused("pipeline.steps.difference.needs=[once]", experiment="diamond")
    assert "could be any of [left, right]; write needs as a mapping" in text


def test_missing_need_says_what_to_add() -> None:
    text = refused("pipeline.steps.difference.needs={left: twice}", experiment="diamond")
    assert text.startswith("difference.right: missing; add a step that makes total to this step's needs")


def test_branch_and_diamond_are_yaml_alone() -> None:
    found = graph(experiment="diamond")
    by_step = {name: nodes[0] for name, nodes in found.by_step().items()}
    assert list(by_step) == ["numbers", "once", "twice", "difference"]
    assert by_step["difference"].inputs == {
        "left": (by_step["twice"].fingerprint,),
        "right": (by_step["once"].fingerprint,),
    }
    branched = graph(
        "+pipeline.steps.thrice={stage: total, needs: [numbers]}", "+thrice.weight=3", experiment="diamond"
    )
    assert branched.by_step()["thrice"][0].request.config["weight"] == 3.0
    assert by_step["difference"].fingerprint in branched.nodes


def test_derived_keys_may_not_be_set(tmp_path: Path) -> None:
    requests = graph("numbers.count=3").nodes
    assert requests
    stage = tmp_path / "derlab" / "stages"
    stage.mkdir(parents=True)
    for init in (stage, stage.parent):
        (init / "__init__.py").touch()
    (stage / "facts.py").write_text(
        'from maskgit_core.hints import Derived\nPRODUCES = "x"\n'
        "def run(attempt, *, num_classes: Derived[int]) -> None: ...\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"facts\.num_classes: is derived .* remove it"):
            Checker(["derlab"], groups()).steps({"pipeline": {"steps": {"facts": {}}}, "facts": {"num_classes": 3}})
    finally:
        sys.path.remove(str(tmp_path))


def test_values_have_one_canonical_form() -> None:
    import sys

    from conftest import TESTS

    sys.path.insert(0, str(TESTS))
    scale: Param = read_stage("toylab.stages.numbers", "numbers").params["scale"]
    assert coerce(scale, 1, "k") == 1.0 and isinstance(coerce(scale, 1, "k"), float)
    assert str(coerce(scale, -0.0, "k")) == "0.0"
    assert coerce(scale, "1e-4", "k") == 1e-4
    with pytest.raises(ConfigError):
        coerce(scale, True, "k")


def test_every_component_and_stage_has_a_readable_signature() -> None:
    """Law over folders: a new file is tested by existing."""
    from experiments.config.schema.signatures import read_component

    sources = Sources()
    seen = 0
    for base, folder in FOLDERS.items():
        for name in sources.components(base):
            module = f"maskgit_core.{folder}.{name.replace('/', '.')}"
            from experiments.config.schema.signatures import source_file

            path = source_file(module)
            assert path is not None
            if f"class {base}" in path.read_text():
                assert read_component(module, base, name).module == module
                seen += 1
    for stage in sources.stages():
        signature = read_stage(f"experiments.stages.{stage}", stage)
        assert isinstance(signature.constants.get("PRODUCES"), str), f"{stage} does not say what it PRODUCES"
        assert isinstance(signature.constants.get("VERSION"), int), f"{stage} has no VERSION"
        seen += 1
    assert seen > 5
