"""Validation: plain composed data in; checked, typed, frozen step requests out.

No other code sees a DictConfig or an unchecked key. Signatures of stages and components are the schema
(`experiments/config/schema/signatures.py` reads them from source), so checking imports none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from experiments.config.needs import Need, match_needs, reference
from experiments.config.resources import step_resources
from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import MISSING, Hint, Param, Signature
from experiments.config.schema.sources import Sources, find_value, present_name
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, unknown_key
from maskgit_core.models import first_name

RESERVED = (
    *("name", "description", "pipeline", "resources", "launcher"),
    *("paths", "tracking", "notify", "plugins", "sweep", "search", "toy", "found"),
)


@dataclass(frozen=True)
class StepRequest:
    """One step as asked: everything checked, defaults filled in, semantic and execution values apart."""

    name: str
    stage: str
    module: str
    version: int
    kind: str
    config: Options  # semantic values, canonical; components as {"name": ..., option: ...}
    identity: Options  # config without options at their neutral value: what is hashed
    execution: Options  # dotted key -> how it runs
    content: Options  # dotted key -> path(s) whose content counts
    weights: Mapping[str, str]  # dotted key -> registry name or file whose sha256 counts
    modules: Mapping[str, str]  # dotted key of a component -> its module
    needs: Mapping[str, tuple[Need, ...]]  # parameter -> upstream steps
    resources: Options = field(default_factory=dict)
    made_for: Options = field(default_factory=dict)  # the model that the sampler's settings were published with


@dataclass
class _Parts:
    """Accumulates what a step's block turns into."""

    config: Block = field(default_factory=dict)
    identity: Block = field(default_factory=dict)
    execution: Block = field(default_factory=dict)
    content: Block = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    made_for: Block = field(default_factory=dict)


class Checker:
    """Checks composed configs; results are memoised, so that the points of a sweep share the work.

    Args:
        plugins: packages searched after our own for `<package>/<folder>/<name>.py`.
        known_groups: config groups, which may be at the top level even when no step uses them.
    """

    def __init__(self, plugins: Sequence[str] = (), known_groups: Sequence[str] = ()) -> None:
        self._sources = Sources(plugins)
        self.known_groups = tuple(known_groups)
        self._memo: dict[str, StepRequest] = {}

    def steps(self, config: Options) -> dict[str, StepRequest]:
        """The checked requests of every step in `pipeline.steps`, by name, in the order written.

        Raises:
            ConfigError: unknown, missing, mistyped, out-of-range or derived keys; an unknown need; a wrong kind.
        """
        nodes = self._nodes(config)
        signatures = {name: self._sources.stage(name, node["stage"]) for name, node in nodes.items()}
        self._check_top_level(config, nodes, signatures)
        kinds = {name: self._kind(name, signature) for name, signature in signatures.items()}
        return {name: self._step(name, node, signatures[name], config, kinds) for name, node in nodes.items()}

    # -- the pipeline block ---------------------------------------------------------------------------------------
    def _nodes(self, config: Options) -> dict[str, Block]:
        pipeline = config.get("pipeline")
        if not isinstance(pipeline, Mapping) or not isinstance(pipeline.get("steps"), Mapping):
            raise ConfigError(
                "pipeline.steps: missing; an experiment names its steps, each with its stage and its needs"
            )
        for key in pipeline:
            if key not in ("steps", "optional"):
                raise unknown_key(f"pipeline.{key}", key, ["steps", "optional"])
        nodes = {}
        for name, node in pipeline["steps"].items():
            if node is None:  # a step removed by another file or on the command line
                continue
            key = f"pipeline.steps.{name}"
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or name in RESERVED:
                raise ConfigError(
                    f"{key}: a step's name is letters, digits and '_', and none of [{', '.join(RESERVED)}]"
                )
            if not isinstance(node, Mapping):
                raise ConfigError(f"{key}: found {node!r}; it must be a mapping with `stage` and `needs`")
            for inner in node:
                if inner not in ("stage", "needs"):
                    raise unknown_key(f"{key}.{inner}", str(inner), ["stage", "needs"])
            if not isinstance(node.get("needs") or [], list | Mapping | str):
                raise ConfigError(f"{key}.needs: found {node['needs']!r}; it must be a list of steps or a mapping")
            needs = _present(node.get("needs") or [], pipeline["steps"])
            nodes[str(name)] = {"stage": str(node.get("stage", name)), "needs": needs}
        if not nodes:
            raise ConfigError("pipeline.steps: names no step")
        return nodes

    def _kind(self, step: str, signature: Signature) -> str:
        kind = signature.constants.get("PRODUCES")
        if not isinstance(kind, str):
            raise ConfigError(f"pipeline.steps.{step}.stage: {signature.path.name} does not say what it PRODUCES")
        return kind

    def _check_top_level(self, config: Options, nodes: Options, signatures: Mapping[str, Signature]) -> None:
        stages = {node["stage"] for node in nodes.values()}
        # A block for a step that another file removed from the DAG is no mistake.
        named = set(config["pipeline"]["steps"])
        stage_files = self._sources.stages()
        removed = [self._sources.stage(name, name).params for name in sorted(named - {*nodes}) if name in stage_files]
        params = {p for s in signatures.values() for p, param in s.params.items() if "derived" not in param.marks}
        allowed = {
            *RESERVED,
            *nodes,
            *named,
            *stages,
            *params,
            *chain.from_iterable(removed),
            *self.known_groups,
            *stage_files,
        }
        for key in config:
            if key not in allowed and key not in self._sources.all_params:
                if meant := self._sources.places(str(key), config, signatures)[:3]:
                    raise ConfigError(f"{key}: unknown key; did you mean {' or '.join(meant)}?")
                raise unknown_key(str(key), str(key), {*RESERVED, *nodes, *stages, *params})
        resources = config.get("resources") or {}
        if not isinstance(resources, Mapping):
            raise ConfigError(f"resources: found {resources!r}; it must be a mapping of steps or stages")
        for key in resources:
            if key not in {*nodes, *named, *stages, *stage_files}:
                raise unknown_key(f"resources.{key}", str(key), {*nodes, *stages})

    # -- one step -------------------------------------------------------------------------------------------------
    def _step(
        self,
        name: str,
        node: Options,
        signature: Signature,
        config: Options,
        kinds: Mapping[str, str],
    ) -> StepRequest:
        stage = node["stage"]
        blocks = [key for key in dict.fromkeys((stage, name)) if config.get(key) is not None]
        # An artifact is never in the config: `model` at the top is the model to train, not the trained one.
        settable = [p.name for p in signature.params.values() if p.kind is None or "spec" in p.forms()]
        top = [p for p in settable if p in config and p not in RESERVED and p not in kinds and p != stage]
        used = {k: config[k] for k in (*blocks, *top)}
        resources = {k: v for k, v in (config.get("resources") or {}).items() if k in (stage, name)}
        memo = json.dumps([name, node, kinds, used, resources], sort_keys=True, default=str)
        if memo not in self._memo:
            needs = match_needs(name, node["needs"], signature, kinds)
            parts = _Parts()
            for block in blocks:
                _refuse_unknown(block, config[block], signature)
            for param in signature.params.values():
                key, value = find_value(param, stage, blocks, config, top)
                if param.kind is not None and isinstance(value, str):
                    needs[param.name], value = (reference(name, param, key, value, kinds),), MISSING
                self._take(param, key, value, param.name, parts, param.name in needs)
            for param in signature.params.values():
                if param.unused_if is not None and parts.config.get(param.unused_if[0]) == param.unused_if[1]:
                    for values in vars(parts).values():
                        values.pop(param.name, None)
            self._memo[memo] = StepRequest(
                name=name,
                stage=stage,
                module=signature.module,
                version=int(signature.constants.get("VERSION", 1)),
                kind=kinds[name],
                needs=needs,
                resources=step_resources(name, stage, resources, bool(signature.constants.get("PIECEWISE"))),
                **vars(parts),
            )
        return self._memo[memo]

    def _take(self, param: Param, key: str, value: Any, path: str, parts: _Parts, has_need: bool) -> None:
        """Checks one value and sorts it into semantic, execution and outside parts."""
        if "derived" in param.marks:
            if value is not MISSING:
                raise ConfigError(f"{key}: is derived from data, tokenizer or hardware; remove it from the config")
            return
        forms = param.forms()
        if param.kind is not None:
            if value is not MISSING and "spec" not in forms:
                raise ConfigError(f"{key}: is the artifact of an upstream step; name that step in needs instead")
            if has_need or ("spec" not in forms and ("none" in forms or param.hint.form == "list")):
                return
            if "spec" not in forms:
                raise ConfigError(f"{key}: missing; add a step that makes {param.kind} to this step's needs")
        if value is MISSING:
            if param.required:
                how = (
                    f"choose one with {path}=NAME or add a step that makes it to needs" if "spec" in forms else "set it"
                )
                raise ConfigError(f"{key}: missing; {how} ({param.hint})")
            value = param.default
        if (entry := param.entry()) is not None and isinstance(value, Mapping | None):
            for name, component in (value or {}).items():
                self._take(entry, f"{key}.{name}", component, f"{path}.{name}", parts, False)
        elif "spec" in forms and isinstance(value, Mapping):
            self._component(param, key, value, path, parts)
        elif "spec" in forms and value is not None:
            raise ConfigError(
                f"{key}: found {value!r}; it must be a mapping with `name`, or a file chosen as {path}=NAME"
            )
        else:
            _store(param, coerce(param, value, key), path, parts, key)

    def _component(self, param: Param, key: str, value: Options, path: str, parts: _Parts) -> None:
        base, name = param.base, present_name(param.base, value.get("name"))
        if not isinstance(name, str):
            raise ConfigError(f"{key}.name: missing; one of [{', '.join(self._sources.components(base))}]")
        if base == "Sampler" and "made_for" in value:
            parts.made_for = self._made_for(f"{key}.made_for", value["made_for"])
            value = {k: v for k, v in value.items() if k != "made_for"}
        signature = self._sources.component(base, name, key)
        self._refuse_options_of_others(base, name, key, value, signature)
        _refuse_unknown(key, {k: v for k, v in value.items() if k != "name"}, signature)
        inner = _Parts(config={"name": name}, identity={"name": first_name(signature.module, name)})
        if (version := int(signature.constants.get("VERSION", 1))) != 1:
            inner.identity["version"] = version
        for option in signature.params.values():
            self._take(option, f"{key}.{option.name}", value.get(option.name, MISSING), option.name, inner, False)
        for option in signature.params.values():
            _refuse_remainder(option, key, inner.config)
        parts.config[path], parts.identity[path] = inner.config, inner.identity
        parts.modules[path] = signature.module
        for mine, theirs in ((parts.execution, inner.execution), (parts.content, inner.content),
                             (parts.weights, inner.weights), (parts.modules, inner.modules)):  # fmt: skip
            mine.update({f"{path}.{k}": v for k, v in theirs.items()})

    def _made_for(self, key: str, value: object) -> Block:
        """The model that a sampler's settings were made for: its name, and options that tell its size."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: found {value!r}; it must be a mapping with the `name` of a model")
        parts = _Parts()
        self._component(Param("model", Hint("spec", ("Model",))), key, value, "model", parts)
        return {option: parts.config["model"].get(option) for option in value}

    def _refuse_options_of_others(self, base: str, name: str, key: str, value: Options, signature: Signature) -> None:
        """Refuses an option that only other components of the kind have, such as one a recipe sets for its model."""
        for option in value:
            if option == "name" or option in signature.params:
                continue
            others = [other for other in self._sources.components(base) if other != name]
            having = [o for o in others if option in self._sources.component(base, o, key).params]
            if having:
                shown = [p.name for p in signature.params.values() if "derived" not in p.marks]
                raise ConfigError(
                    f"{key}.{option}: unknown key; {name} has no such option, {', '.join(having)} has it: choose such "
                    f"a {base.lower()} or leave it out with ~{key}.{option}. One of [{', '.join(sorted(shown))}]"
                )


def _present(needs: Any, steps: Options) -> Any:
    """`needs` without entries that another file took away (null) and optional ones (`train_tokenizer?`) of no step.

    In a list, `cache_tokens|train` is the first of these that is a step.
    """
    if isinstance(needs, list):
        present = [str(n).split("|") for n in needs]
        return [next((n for n in names if steps.get(n) is not None), names[-1]) for names in present]
    if not isinstance(needs, Mapping):
        return needs
    optional = {k: v[:-1] for k, v in needs.items() if isinstance(v, str) and v.endswith("?")}
    absent = {k for k, step in optional.items() if steps.get(step) is None}
    return {k: optional.get(k, v) for k, v in needs.items() if v is not None and k not in absent}


def _store(param: Param, value: Any, path: str, parts: _Parts, key: str) -> None:
    if "execution" in param.marks:
        parts.execution[path] = value
    elif "content" in param.marks:
        if value is not None:
            parts.content[path] = value
    elif "weights" in param.marks:
        if value is not None:
            parts.weights[path] = value
    else:
        parts.config[path] = value
        if param.neutral is MISSING or value != coerce(replace(param, low=None, high=None), param.neutral, key):
            parts.identity[path] = _identified(param, value)


def _identified(param: Param, value: Any) -> Any:
    """The form of an option's value in the fingerprint: with the revision where its meaning changed."""
    if param.revision is None or value in param.unrevised:
        return value
    return f"{value} (revision {param.revision})"


def _refuse_unknown(key: str, block: object, signature: Signature) -> None:
    if not isinstance(block, Mapping):
        raise ConfigError(f"{key}: found {block!r}; it must be a mapping of [{', '.join(sorted(signature.params))}]")
    for inner in block:
        if inner not in signature.params:
            shown = [p.name for p in signature.params.values() if "derived" not in p.marks]
            raise unknown_key(f"{key}.{inner}", str(inner), shown)


def _refuse_remainder(param: Param, key: str, values: Options) -> None:
    if param.divides is not None and values[param.divides] % values[param.name]:
        raise ConfigError(
            f"{key}.{param.name}: {values[param.name]} does not divide {key}.{param.divides} "
            f"({values[param.divides]}); give a divisor of it"
        )
