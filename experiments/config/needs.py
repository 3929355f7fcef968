"""The edges of the DAG: which upstream artifact fills which input of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.config.schema.params import Param, Signature
from experiments.store.typed_json import Options
from maskgit_core.errors import ConfigError, unknown_key, unknown_name


@dataclass(frozen=True)
class Need:
    """An edge of the DAG as written: a step's name, or all items of a sweep (`evaluate[*]`).

    `train@50000` is the checkpoint that `train` keeps after so many steps. `stored`: no step of this pipeline but one
    that the store knows by this name, folder or fingerprint.
    """

    step: str
    all_items: bool = False
    at: int | None = None
    stored: bool = False


def match_needs(step: str, written: Any, signature: Signature, kinds: Mapping[str, str]) -> dict[str, tuple[Need, ...]]:
    """Assigns upstream steps to the stage's inputs: by name where `needs` is a mapping, else by kind."""
    key = f"pipeline.steps.{step}.needs"
    inputs = {p.name: p for p in signature.params.values() if p.kind is not None}
    takes = ", ".join(f"{p.name} ({p.kind})" for p in inputs.values()) or "nothing"
    matched: dict[str, list[Need]] = {}

    def assign(param: Param, need: Need) -> None:
        needs = matched.setdefault(param.name, [])
        if needs and param.hint.form != "list":
            raise ConfigError(f"{key}: both {needs[0].step} and {need.step} would be {param.name}; {step} takes one")
        needs.append(need)

    if isinstance(written, Mapping):
        for name, value in written.items():
            if name not in inputs:
                raise unknown_key(f"{key}.{name}", str(name), inputs)
            for text in value if isinstance(value, list) else [value]:
                need = _need(f"{key}.{name}", text, kinds)
                if kinds[need.step] != inputs[name].kind:
                    raise ConfigError(
                        f"{key}.{name}: {need.step} makes {kinds[need.step]}, not {inputs[name].kind}; "
                        f"{step} takes {takes}"
                    )
                assign(inputs[name], need)
    else:
        for text in [written] if isinstance(written, str) else written:
            need = _need(key, text, kinds)
            fitting = [p for p in inputs.values() if p.kind == kinds[need.step]]
            if not fitting:
                raise ConfigError(f"{key}: {need.step} makes {kinds[need.step]}; {step} takes {takes}")
            # An artifact on its own comes before a list of more of its kind.
            alone = [p for p in fitting if p.hint.form != "list"]
            if len(alone) == 1 and len(fitting) > 1:
                fitting = alone if alone[0].name not in matched else [p for p in fitting if p is not alone[0]]
            if len(fitting) > 1:
                names = ", ".join(p.name for p in fitting)
                raise ConfigError(
                    f"{key}: {need.step} could be any of [{names}]; write needs as a mapping {{input: step}}"
                )
            assign(fitting[0], need)
    return {name: tuple(needs) for name, needs in matched.items()}


def _need(key: str, text: object, kinds: Mapping[str, str]) -> Need:
    name = str(text)
    step, at = _place(key, name.removesuffix("[*]"))
    if step not in kinds:
        raise unknown_name(key, step, kinds, "step")
    return Need(step, name.endswith("[*]"), at)


def _place(key: str, text: str) -> tuple[str, int | None]:
    """`train@50000` as (`train`, 50000)."""
    step, mark, at = text.rpartition("@")
    if not mark:
        return text, None
    if not at.isdigit() or int(at) < 1:
        raise ConfigError(f"{key}: found {text!r}; write STEP@N with the number of training steps, as in train@50000")
    return step, int(at)


def reference(step: str, param: Param, key: str, text: str, kinds: Mapping[str, str]) -> Need:
    """The edge that a value such as `sample.model=train@50000` or `train.continue_from=quickstart/train@700` asks for.

    The name of another step of the pipeline means that step; anything else is looked for in the store.
    """
    name, at = _place(key, text)
    if name == step or name not in kinds:
        return Need(name, at=at, stored=True)
    if kinds[name] != param.kind:
        raise ConfigError(f"{key}: {name} makes {kinds[name]}, not {param.kind}")
    return Need(name, at=at)


def topological(requests: Options) -> list[str]:
    """Names of step requests, upstream first.

    Raises:
        ConfigError: a cycle; names its steps.
    """
    done: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"pipeline.steps.{name}.needs: a cycle ({cycle}); remove one of these needs")
        path.append(name)
        for needs in requests[name].needs.values():
            for need in needs:
                if not need.stored:
                    visit(need.step)
        path.pop()
        done.append(name)

    for name in requests:
        visit(name)
    return done
