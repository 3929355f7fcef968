"""Finds the source files of stages and components, in this project and then in plugins, and a parameter's value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from experiments.config.schema.params import MISSING, Param, Signature
from experiments.config.schema.signatures import read_component, read_stage, source_file
from experiments.store.typed_json import Options
from maskgit_core.errors import SYNONYMS, unknown_name
from maskgit_core.models import RENAMED, present_module

#: Class of a component -> its folder.
FOLDERS = {
    "Tokenizer": "tokenizers",
    "Model": "models",
    "Sampler": "samplers",
    "Dataset": "datasets",
    "Extractor": "extractors",
    "Metric": "metrics",
}


def present_name(base: str, name: object) -> object:
    """The name that a component of class `base` has now, whichever of its names is given."""
    return RENAMED.get(str(name), name) if base == "Model" else name


class Sources:
    """Signatures by name.

    Args:
        plugins: packages searched after our own for `<package>/<folder>/<name>.py`.
    """

    def __init__(self, plugins: Sequence[str] = ()) -> None:
        self._plugins = tuple(plugins)
        self._listed: dict[str, list[str]] = {}

    def stage(self, step: str, stage: str) -> Signature:
        """The signature of a step's stage.

        Raises:
            ConfigError: there is no such stage.
        """
        for module in (f"{package}.stages.{stage}" for package in ("experiments", *self._plugins)):
            if re.fullmatch(r"[A-Za-z0-9_]+", stage) and source_file(module) is not None:
                return read_stage(module, stage)
        raise unknown_name(f"pipeline.steps.{step}.stage", stage, self.stages(), "stage")

    def component(self, base: str, name: str, key: str) -> Signature:
        """The signature of a component of class `base`; `key` is where the config names it.

        Raises:
            ConfigError: there is no such component.
        """
        if re.fullmatch(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*", name):
            for package in ("maskgit_core", *self._plugins):
                module = present_module(f"{package}.{FOLDERS[base]}.{name.replace('/', '.')}")
                if source_file(module) is not None:
                    return read_component(module, base, key)
        raise unknown_name(f"{key}.name", name, self.components(base), base.lower())

    def stages(self) -> list[str]:
        """The names of all stages."""
        return self._names("stages", "experiments")

    def components(self, base: str) -> list[str]:
        """The names of all components of class `base`."""
        return self._names(FOLDERS[base], "maskgit_core")

    @cached_property
    def all_params(self) -> set[str]:
        """Parameters of any stage: what a file sets for a step that was removed from the DAG is no mistake."""
        stages = [self.stage(name, name).params.values() for name in self.stages()]
        return {p.name for params in stages for p in params if "derived" not in p.marks}

    def places(self, key: str, config: Options, signatures: Mapping[str, Signature]) -> list[str]:
        """Dotted keys that `key` may mean: options of that name, or of a usual synonym, of what is configured."""
        wanted, keys = dict.fromkeys([key, *SYNONYMS.get(key.lower(), ())]), []
        for base in FOLDERS:
            block = config.get(base.lower())
            name = block.get("name") if isinstance(block, Mapping) else None
            if isinstance(name, str):
                params = self.component(base, name, base.lower()).params
                keys += [f"{base.lower()}.{option}" for option in wanted if option in params]
        steps = sorted(signatures, key=lambda step: step != "train")
        keys += [f"{step}.{option}" for step in steps for option in wanted if option in signatures[step].params]
        return keys

    def _names(self, folder: str, package: str) -> list[str]:
        """The files of a folder; listed once, as every point of a sweep asks."""
        if folder not in self._listed:
            names = []
            for place in (package, *self._plugins):
                init = source_file(f"{place}.{folder}.__init__")
                if init is not None:
                    files = (p.relative_to(init.parent).with_suffix("").as_posix() for p in init.parent.rglob("*.py"))
                    names += [name for name in files if not name.rsplit("/", 1)[-1].startswith("_")]
            self._listed[folder] = sorted(names)
        return self._listed[folder]


def find_value(param: Param, stage: str, blocks: Sequence[str], config: Options, top: Sequence[str]) -> tuple[str, Any]:
    """The place of a stage parameter's value: the step's block over the stage's over the top level."""
    key, value = f"{stage}.{param.name}", MISSING
    if param.name in top:
        key, value = param.name, config[param.name]
    for block in blocks:
        if param.name in config[block]:
            inner = config[block][param.name]
            if param.base and _is_same_component(param.base, value, inner):
                value = {**value, **inner}
            else:
                value = inner
            key = f"{block}.{param.name}"
    return key, value


def _is_same_component(base: str, above: object, inner: object) -> bool:
    """True where options of one block go over those of another: both mean the component of one name."""
    if not isinstance(inner, Mapping) or not isinstance(above, Mapping):
        return False
    return "name" not in inner or present_name(base, inner["name"]) == present_name(base, above.get("name"))
