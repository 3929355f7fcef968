"""Turns a step folder's `request.json` and `launch.json` into the keyword arguments of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.config.signatures import Param, Signature, read_component, read_stage
from experiments.config.specs import SPECS, Input
from experiments.store.step_folder import check_outputs
from maskgit_core.errors import ArtifactError
from maskgit_core.files import read_json


def read_request(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`request.json` (what) and `launch.json` (how) of a step folder."""
    request, launch = read_json(folder / "request.json"), read_json(folder / "launch.json")
    if request is None or launch is None:
        raise ArtifactError(f"{folder}: is not a step's folder (request.json or launch.json is missing)")
    return request, launch


def load_inputs(store: Path, request: Mapping[str, Any], launch: Mapping[str, Any]) -> dict[str, list[Input]]:
    """The finished upstream artifacts by parameter, each checked against its manifest.

    Raises:
        ArtifactError: an input is not finished, or its files no longer match its manifest.
    """
    found: dict[str, list[Input]] = {}
    for param, entries in request["inputs"].items():
        found[param] = []
        for entry in entries:
            folder = store / entry["folder"]
            manifest = read_json(folder / "manifest.json")
            if manifest is None:
                raise ArtifactError(f"{folder}: the input {param} is not finished; run the pipeline again to make it")
            check_outputs(folder, manifest)
            upstream = read_json(folder / "request.json") or {}
            known = launch.get("inputs", {}).get(entry["fingerprint"], {})
            found[param].append(
                Input(
                    name=known.get("name", upstream.get("stage", param)),
                    kind=manifest["kind"],
                    folder=folder,
                    fingerprint=entry["fingerprint"],
                    facts=manifest.get("facts", {}),
                    config=upstream.get("config", {}),
                    params=known.get("params", {}),
                )
            )
    return found


def input_manifests(inputs: Mapping[str, list[Input]]) -> dict[str, str]:
    """fingerprint -> manifest digest of every input, as they are now."""
    return {i.fingerprint: str((read_json(i.folder / "manifest.json") or {}).get("digest"))
            for entries in inputs.values() for i in entries}  # fmt: skip


def arguments(
    request: Mapping[str, Any], launch: Mapping[str, Any], inputs: Mapping[str, list[Input]]
) -> dict[str, Any]:
    """The keyword arguments of the stage's `run`: specs, inputs and plain values."""
    signature = read_stage(request["module"], request["stage"])
    outside = {**launch.get("content", {}), **launch.get("weights", {}), **launch.get("execution", {})}
    built: dict[str, Any] = {}
    for name, param in signature.params.items():
        if "derived" in param.marks:
            continue
        entry = param.entry()
        if name in inputs:
            built[name] = inputs[name] if param.hint.form == "list" else inputs[name][0]
        elif entry is not None:
            keys = [key for key in request["config"] if key.startswith(f"{name}.")]
            found = {k.partition(".")[2]: _spec(entry, k, request["config"][k], request, outside) for k in keys}
            built[name] = found or (None if param.required else param.default)
        elif name in request["config"]:
            value = request["config"][name]
            is_spec = "spec" in param.forms() and isinstance(value, Mapping)
            built[name] = _spec(param, name, value, request, outside) if is_spec else _shaped(param, value)
        elif name in outside:
            built[name] = _shaped(param, outside[name])
        elif param.kind is not None:
            built[name] = [] if param.hint.form == "list" else None
        elif not param.required:
            built[name] = _shaped(param, param.default)
    return grouped(signature, built)


def grouped(signature: Signature, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments by key of the config, with those that are fields of a dataclass put into it."""
    arguments = {name: value for name, value in values.items() if not signature.params[name].group}
    for group, (module, class_name) in signature.groups.items():
        fields = {name: value for name, value in values.items() if signature.params[name].group == group}
        arguments[group] = getattr(import_module(module), class_name)(**fields)
    return arguments


def _shaped(param: Param, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and "tuple" in param.forms() else value


def _spec(
    param: Param, path: str, value: Mapping[str, Any], request: Mapping[str, Any], outside: Mapping[str, Any]
) -> Any:
    hints = param.hint.args if param.hint.form == "union" else (param.hint,)
    base = next(h.args[0] for h in hints if h.form == "spec")
    cls = SPECS[f"{base}Spec"]
    module = request["modules"][path]
    options = _options(cls.class_name, module, path, value, request, outside)
    return cls(name=str(value["name"]), options=options, module=module)


def _options(
    class_name: str,
    module: str,
    path: str,
    value: Mapping[str, Any],
    request: Mapping[str, Any],
    outside: Mapping[str, Any],
) -> dict[str, Any]:
    signature: Signature = read_component(module, class_name, path)
    options: dict[str, Any] = {}
    for name, param in signature.params.items():
        dotted = f"{path}.{name}"
        if name in value:
            inner = value[name]
            nested = "spec" in param.forms() and isinstance(inner, Mapping)
            options[name] = _spec(param, dotted, inner, request, outside) if nested else _shaped(param, inner)
        elif dotted in outside:
            options[name] = _shaped(param, outside[dotted])
    return options
