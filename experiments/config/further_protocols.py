"""Several protocols in one evaluation: `protocol=[adm,clean]`, or `further_protocols: [clean]` in an experiment's file.

The first protocol is composed like any other choice. Each further one adds to the DAG what it needs and no more: a step
`<reference>_<protocol>` beside every step that makes reference statistics, and in every step that measures an entry in
`further_extractors` and `further_settings`. That step passes its images once through each distinct network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import MISSING
from experiments.config.schema.signatures import read_component, read_stage, source_file
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, unknown_key

REFERENCE = "reference_statistics"
MEASURING = ("evaluate", "eval_tokenizer")
Read = Callable[[str], Options]


def with_further_protocols(config: Options, read: Read) -> Block:
    """`config` with the steps and blocks of its `further_protocols`; that key is gone.

    Args:
        config: composed, with the first protocol at its top level.
        read: gives the content of a protocol's file by its name.

    Raises:
        ConfigError: a protocol named twice, without an extractor, or with options that no measuring stage has.
    """
    changed = dict(config)
    names = changed.pop("further_protocols", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"further_protocols: found {names!r}; it must be a list of names in conf/protocol")
    pipeline = config.get("pipeline")
    if not names or not isinstance(pipeline, Mapping) or not isinstance(pipeline.get("steps"), Mapping):
        return changed
    first = str(config.get("protocol"))
    if twice := [name for name in names if [first, *names].count(name) > 1]:
        raise ConfigError(f"protocol: {twice[0]} is named twice; name each protocol once")
    steps = dict(pipeline["steps"])
    stages = {name: _stage(name, node) for name, node in steps.items() if node is not None}
    own = _changes(_mapping(config.get("extractor")), _mapping(read(first).get("extractor")))
    for name in names:
        further = _Further(name, read(name), own, changed, steps)
        made = {step: further.add_reference(step) for step, stage in stages.items() if stage == REFERENCE}
        for step, stage in stages.items():
            if stage in MEASURING:
                further.add_to(step, stage, made)
    changed["pipeline"] = {**pipeline, "steps": steps}
    return changed


def _stage(name: str, node: object) -> str:
    return str(node.get("stage", name)) if isinstance(node, Mapping) else name


def _mapping(value: object) -> Block:
    return dict(value) if isinstance(value, Mapping) else {}


def _changes(now: Options, filed: Options) -> Block:
    """Values set over the first protocol's file, e.g. a weights file; they hold for all protocols of that network."""
    changes = {k: v for k, v in now.items() if filed.get(k, MISSING) != v}
    return {"name": now["name"], **changes} if changes and now.get("name") == filed.get("name") else {}


@dataclass
class _Further:
    """One further protocol on its way into a config's blocks and steps."""

    name: str
    file: Options
    own: Options
    config: Block
    steps: Block

    @property
    def extractor(self) -> Block:
        """The protocol's feature network, completed by what was set on the command line for the same network."""
        named = _mapping(self.file.get("extractor"))
        if "name" not in named:
            raise ConfigError(f"protocol: {self.name} names no extractor, so it cannot stand beside another protocol")
        return {**(self.own if self.own.get("name") == named["name"] else {}), **named}

    def add_reference(self, step: str) -> str:
        """Adds this protocol's twin of a reference step; returns its name."""
        new = re.sub(r"\W", "_", f"{step}_{self.name}")
        stage_block = _mapping(self.config.get(REFERENCE))
        block = _mapping(self.config.get(step)) if step != REFERENCE else {}
        top = _mapping(self.config.get("extractor"))
        extractor = self.extractor
        metrics = read_stage(f"experiments.stages.{REFERENCE}", REFERENCE).params["metrics"].default
        asked = {**block, "extractor": self._complete(extractor, top), "metrics": metrics, "protocol": self.name}
        asked |= {"metrics": self.file["metrics"]} if "metrics" in self.file else {}
        asked |= _mapping(self.file.get(REFERENCE))
        given = _mapping(self.config.get(new))
        if {**stage_block, **block}.get("statistics") is not None and extractor != top and "statistics" not in given:
            if "dataset" not in {**self.config, **stage_block, **block}:
                raise ConfigError(
                    f"{new}.statistics: missing; those of {step} are not of {self.name}'s network and resize; give "
                    f" {new}.statistics=FILE or choose a dataset"
                )
            asked["statistics"] = None
        self.config[new] = {**asked, **given}
        self.steps[new] = {**_mapping(self.steps[step]), "stage": REFERENCE}
        return new

    def _complete(self, extractor: Block, top: Options) -> Block:
        """Options that only the first protocol sets, at their defaults: blocks are laid over the top level."""
        if extractor["name"] != top.get("name"):
            return extractor
        packages = ("maskgit_core", *(self.config.get("plugins") or ()))
        modules = [f"{p}.extractors.{str(extractor['name']).replace('/', '.')}" for p in packages]
        module = next((m for m in modules if source_file(m) is not None), modules[0])
        params = read_component(module, "Extractor", "extractor").params
        left = {k: params[k].default for k in top if k not in extractor and k in params}
        return {**extractor, **{k: v for k, v in left.items() if v is not MISSING}}

    def add_to(self, step: str, stage: str, made: Mapping[str, str]) -> None:
        """Adds this protocol to a step that measures, and the references it needs to that step's needs."""
        block, given = _mapping(self.config.get(step)), _mapping(self.file.get(stage))
        params = read_stage(f"experiments.stages.{stage}", stage).params
        # what may differ from protocol to protocol
        own = [p.name for p in params.values() if p.group == "settings"] or ["metrics"]
        settings = {k: v for k, v in {"metrics": self.file.get("metrics"), **given}.items() if v is not None}
        for key in settings:
            if key not in params:
                raise unknown_key(f"protocol {self.name}: {stage}.{key}", key, params)
        said = {**_mapping(self.config.get(stage)), **block}
        filled = {k: v for k, v in settings.items() if k not in own and k not in said}
        for key, entry in (
            ("further_extractors", self.extractor),
            ("further_settings", {k: settings[k] for k in own if k in settings}),
        ):
            further = _mapping(block.get(key))
            filled[key] = {**further, self.name: {**entry, **_mapping(further.get(self.name))}}
        for key, value in filled["further_settings"][self.name].items():
            if key not in own:
                raise unknown_key(f"{step}.further_settings.{self.name}.{key}", key, own)
            coerce(params[key], value, f"{step}.further_settings.{self.name}.{key}")
        self.config[step] = {**block, **filled}
        node = _mapping(self.steps[step])
        self.steps[step] = {**node, "needs": _with_references(node.get("needs") or [], made)}


def _with_references(needs: Any, made: Mapping[str, str]) -> object:
    """`needs` with the twins of those reference steps that it names."""
    if isinstance(needs, Mapping):
        named = [str(v) for value in needs.values() for v in (value if isinstance(value, list) else [value])]
        before = needs.get("further_references") or []
        more = [made[n] for n in named if n in made]
        return {**needs, "further_references": [*before, *more]} if more else needs
    written = [needs] if isinstance(needs, str) else list(needs)
    return [*written, *(made[str(n)] for n in written if str(n) in made)]
