"""Turns the request and launch of a step into the keyword arguments of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from experiments.config.schema.params import Param, Signature
from experiments.config.schema.signatures import read_component, read_stage
from experiments.config.specs import SPECS, Input
from experiments.store.documents import Launch, Manifest, Request
from experiments.store.step_folder import check_outputs
from experiments.store.typed_json import Options
from experiments.store.upkeep.repair import changed_outputs
from maskgit_core.errors import ArtifactError

MAX_HASHED_BYTES = 4 * 1024**3


def load_inputs(store: Path, request: Request, launch: Launch) -> dict[str, list[Input]]:
    """The finished upstream artifacts by parameter, each checked against its manifest.

    Raises:
        ArtifactError: an input is not finished, or its files no longer match its manifest.
    """
    inputs: dict[str, list[Input]] = {}
    for param, sources in request.inputs.items():
        inputs[param] = []
        for source in sources:
            folder = store / source.folder
            manifest = Manifest.read(folder)
            if manifest is None:
                raise ArtifactError(f"{folder}: the input {param} is not finished; run the pipeline again to make it")
            check_outputs(folder, manifest)
            upstream = Request.needed(folder)
            named = launch.inputs.get(source.fingerprint)
            inputs[param].append(
                Input(
                    name=named.name if named else upstream.stage,
                    kind=manifest.kind,
                    folder=folder,
                    fingerprint=source.fingerprint,
                    facts=manifest.facts,
                    config=upstream.config,
                    params=named.params if named else {},
                )
            )
    return inputs


def input_manifests(inputs: Mapping[str, list[Input]]) -> dict[str, str]:
    """fingerprint -> manifest digest of every input, as they are now."""
    return {i.fingerprint: Manifest.needed(i.folder).digest for entries in inputs.values() for i in entries}


def changed_input(inputs: Mapping[str, list[Input]]) -> str | None:
    """The first input file that is not what its manifest says, hashed whatever its size and time say; None: none.

    At most `MAX_HASHED_BYTES` are looked at: it is asked only once a stage has crashed.
    """
    left = MAX_HASHED_BYTES
    for folder in dict.fromkeys(i.folder for entries in inputs.values() for i in entries):
        manifest = Manifest.needed(folder)
        outputs = {}
        for name, output in sorted(manifest.outputs.items(), key=lambda entry: entry[1].size):
            if output.size <= left:
                outputs[name], left = output, left - output.size
        if problems := changed_outputs(folder, replace(manifest, outputs=outputs)):
            return problems[0]
    return None


def arguments(request: Request, launch: Launch, inputs: Mapping[str, list[Input]]) -> dict[str, object]:
    """The keyword arguments of the stage's `run`: specs, inputs and plain values."""
    signature = read_stage(request.module, request.stage)
    outside = {**launch.content, **launch.weights, **launch.execution}
    built: dict[str, object] = {}
    for name, param in signature.params.items():
        if "derived" in param.marks:
            continue
        entry = param.entry()
        if name in inputs:
            built[name] = inputs[name] if param.hint.form == "list" else inputs[name][0]
        elif entry is not None:
            keys = [key for key in request.config if key.startswith(f"{name}.")]
            specs = {k.partition(".")[2]: _spec(entry, k, request.config[k], request, outside) for k in keys}
            built[name] = specs or (None if param.required else param.default)
        elif name in request.config:
            value = request.config[name]
            is_spec = "spec" in param.forms() and isinstance(value, Mapping)
            built[name] = _spec(param, name, value, request, outside) if is_spec else _shaped(param, value)
        elif name in outside:
            built[name] = _shaped(param, outside[name])
        elif param.kind is not None:
            built[name] = [] if param.hint.form == "list" else None
        elif not param.required:
            built[name] = _shaped(param, param.default)
    return grouped(signature, built)


def grouped(signature: Signature, values: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments by key of the config, with those that are fields of a dataclass put into it."""
    arguments = {name: value for name, value in values.items() if not signature.params[name].group}
    for group, (module, class_name) in signature.groups.items():
        fields = {name: value for name, value in values.items() if signature.params[name].group == group}
        arguments[group] = getattr(import_module(module), class_name)(**fields)
    return arguments


def stage_arguments(folder: Path) -> dict[str, object]:
    """The arguments that the step in `folder` was run with."""
    request, launch = Request.needed(folder), Launch.needed(folder)
    return arguments(request, launch, load_inputs(folder.parent.parent, request, launch))


def _shaped(param: Param, value: object) -> object:
    return tuple(value) if isinstance(value, list) and "tuple" in param.forms() else value


def _spec(param: Param, path: str, value: Options, request: Request, outside: Options) -> object:
    cls = SPECS[f"{param.base}Spec"]
    module = request.modules[path]
    options = _options(cls.class_name, module, path, value, request, outside)
    return cls(name=str(value["name"]), options=options, module=module)


def _options(
    class_name: str,
    module: str,
    path: str,
    value: Options,
    request: Request,
    outside: Options,
) -> dict[str, object]:
    signature: Signature = read_component(module, class_name, path)
    options: dict[str, object] = {}
    for name, param in signature.params.items():
        dotted = f"{path}.{name}"
        if name in value:
            inner = value[name]
            nested = "spec" in param.forms() and isinstance(inner, Mapping)
            options[name] = _spec(param, dotted, inner, request, outside) if nested else _shaped(param, inner)
        elif dotted in outside:
            options[name] = _shaped(param, outside[dotted])
    return options
