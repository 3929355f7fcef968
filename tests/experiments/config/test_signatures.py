"""A stage's schema from the dataclasses that it takes: one definition of every key."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path

import pytest

from experiments.config.schema.params import MISSING
from experiments.config.schema.signatures import read_component, read_stage
from experiments.running.binding import grouped
from maskgit_core.errors import ConfigError

STAGE = """
from pathlib import Path
from {package}.settings import {names}
from maskgit_core.hints import Execution

PRODUCES = "thing"

def run(attempt, *, first: int, plan: Plan, {more}) -> None:
    pass
"""
SETTINGS = """
from dataclasses import dataclass
from typing import Annotated, ClassVar
from maskgit_core.hints import Execution, Neutral, Range

@dataclass(frozen=True)
class Base:
    kind: ClassVar[str] = "base"
    steps: Annotated[int, Range(1)]

@dataclass(frozen=True)
class Plan(Base):
    rate: Annotated[float, Range(0.0), Neutral(1.0)] = 1.0
    workers: Execution[int] = 2

    @property
    def total(self) -> float:
        return self.steps * self.rate

@dataclass
class Loose:
    size: int = 3
"""


@pytest.fixture
def stage_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Writes a plugin with one stage; gives the dotted module of it."""
    package = f"plug_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(names: str = "Plan", more: str = "last: str = 'x'") -> str:
        (tmp_path / package / "stages").mkdir(parents=True)
        for init in (tmp_path / package / "__init__.py", tmp_path / package / "stages" / "__init__.py"):
            init.touch()
        (tmp_path / package / "settings.py").write_text(SETTINGS)
        path = tmp_path / package / "stages" / "planned.py"
        path.write_text(STAGE.format(package=package, names=names, more=more))
        importlib.invalidate_caches()
        return f"{package}.stages.planned"

    return write


def test_fields_of_a_dataclass_are_keys_like_any_other(stage_of) -> None:
    signature = read_stage(stage_of(), "planned")
    assert list(signature.params) == ["first", "steps", "rate", "workers", "last"]
    assert signature.params["steps"].default is MISSING and signature.params["steps"].low == 1
    assert signature.params["rate"].neutral == 1.0 and "execution" in signature.params["workers"].marks
    arguments = grouped(signature, {"first": 1, "steps": 4, "rate": 0.5, "last": "y"})
    assert arguments["plan"].total == 2.0 and arguments["plan"].workers == 2
    assert {name for name in arguments if name != "plan"} == {"first", "last"}


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        ("Plan", "steps: int = 3", "steps is declared twice"),
        ("Plan, Loose", "loose: Loose", "only the fields of a frozen dataclass"),
        ("Plan", "folder: Path", "the hint Path is outside the schema's grammar"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused_by_name(stage_of, names: str, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_stage(stage_of(names, more), "planned")


@pytest.mark.parametrize("stage", ["train", "train_tokenizer", "evaluate"])
def test_a_stage_s_dataclass_declares_its_keys_and_nothing_else_does(stage: str) -> None:
    signature = read_stage(f"experiments.stages.{stage}", stage)
    assert signature.groups
    for group, (module, name) in signature.groups.items():
        declared = [f.name for f in fields(getattr(importlib.import_module(module), name))]
        assert declared == [p.name for p in signature.params.values() if p.group == group]


SAMPLERS = {
    "own": "@dataclass(frozen=True)\nclass Sampler(StepSampler):\n    num_steps: int = 9\n    bias: float = 0.5\n",
    "heir": "class Sampler(StepSampler):\n    pass\n",
    "plain": "class Sampler:\n    def __init__(self, *, bias: float = 0.5) -> None: ...\n",
    "none": "class Sampler:\n    pass\n",
    "loose": "@dataclass\nclass Sampler(StepSampler):\n    bias: float = 0.5\n",
}


@pytest.mark.parametrize("form", SAMPLERS)
def test_a_component_declares_its_keys_in_any_form_of_a_class(tmp_path, monkeypatch, form: str) -> None:
    package = f"plug_component_{form}"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / package / "samplers").mkdir(parents=True)
    imports = "from dataclasses import dataclass\nfrom maskgit_core.samplers import StepSampler\n\n"
    (tmp_path / package / "samplers" / "one.py").write_text(imports + SAMPLERS[form])
    importlib.invalidate_caches()
    if form == "loose":
        with pytest.raises(ConfigError, match=r"key: one.py: Sampler: only the fields of a frozen dataclass"):
            read_component(f"{package}.samplers.one", "Sampler", "key")
        return
    params = read_component(f"{package}.samplers.one", "Sampler", "key").params
    assert ("guidance_scale" in params) == (form in ("own", "heir")) and ("bias" in params) == (
        form in ("own", "plain")
    )
    assert form != "own" or (params["num_steps"].default, params["guidance_scale"].low) == (9, 0.0)
