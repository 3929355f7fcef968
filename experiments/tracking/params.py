"""The params of an MLflow run: what differs from defaults and what a sweep varies; `request.json` has the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.config.schema.params import MISSING, Signature
from experiments.config.schema.signatures import read_component, read_stage
from experiments.config.specs import SPECS
from experiments.store.documents import Request
from experiments.store.records import PipelineStep, step_params
from maskgit_core.errors import MaskgitError

#: Folder of a component -> its class.
CLASSES = {spec.folder: spec.class_name for spec in SPECS.values()}


def asked_params(entry: PipelineStep, request: Request | None) -> dict[str, str]:
    """A step's values that are not the defaults of its stage and components, and those of the sweep."""
    every = step_params(entry, request)
    if request is None:
        return every
    swept = step_params(entry, None)
    left_out = set(_at_default(entry.step.partition("@")[0], request)) - swept.keys()
    return {key: value for key, value in every.items() if key not in left_out}


def _at_default(step: str, request: Request) -> Iterator[str]:
    stage = _signature(request.module, None, request.stage)
    for key, value in request.config.items():
        if isinstance(value, Mapping) and key in request.modules:
            folder = request.modules[key].split(".")[-2]
            signature = _signature(request.modules[key], CLASSES.get(folder, ""), key)
            yield from (f"{key}.{inner}" for inner, held in value.items() if _is_default(signature, str(inner), held))
        elif _is_default(stage, key, value):
            yield f"{step}.{key}"


def _signature(module: str, class_name: str | None, key: str) -> Signature | None:
    """The signature of a stage or component as it is now; None where it is gone."""
    try:
        return read_stage(module, key) if class_name is None else read_component(module, class_name, key)
    except (MaskgitError, ValueError, KeyError):
        return None


def _is_default(signature: Signature | None, key: str, value: object) -> bool:
    param = signature.params.get(key) if signature is not None else None
    if param is None or param.default is MISSING:
        return False
    default = list(param.default) if isinstance(param.default, tuple) else param.default
    return bool(default == value)
