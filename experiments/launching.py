"""From planned steps to a launcher's calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.pipeline import Graph
from experiments.plan import PlannedStep
from experiments.signatures import MISSING, read_component, source_file
from experiments.values import coerce, unknown_key, unknown_name
from launchers.calls import Call, Resources
from maskgit_core.errors import ConfigError, LaunchError

TARGET = "experiments.job:main"


def launcher_names() -> list[str]:
    """Files of `launchers/` that hold a launcher."""
    import launchers

    here = Path(launchers.__path__[0])
    return sorted(p.stem for p in here.glob("*.py") if "class Launcher" in p.read_text())


def load_launcher(block: Mapping[str, Any] | None) -> Any:
    """The launcher a config's `launcher:` block names, with its options checked.

    Raises:
        ConfigError: an unknown launcher or option.
    """
    block = block or {"name": "local"}
    name = str(block.get("name", "local"))
    if not name.isidentifier() or source_file(f"launchers.{name}") is None or name not in launcher_names():
        raise unknown_name("launcher.name", name, launcher_names(), "launcher")
    signature = read_component(f"launchers.{name}", "Launcher", "launcher")
    options = {}
    for key, value in block.items():
        if key == "name":
            continue
        if key not in signature.params:
            raise unknown_key(f"launcher.{key}", key, signature.params)
        options[key] = coerce(signature.params[key], value, f"launcher.{key}")
    for param in signature.params.values():
        if param.default is MISSING and param.name not in options:
            raise ConfigError(f"launcher.{param.name}: missing; set it ({param.hint})")
    return import_module(f"launchers.{name}").Launcher(**options)


def resources(step: PlannedStep) -> Resources:
    """A step's resources as the launchers know them.

    Raises:
        LaunchError: not possible; names the step.
    """
    asked = {k: v for k, v in step.node.request.resources.items() if v is not None}
    whole = ("ranks", "nodes", "cpus_per_task", "gpus_per_task", "pack")
    try:
        return Resources(**{k: int(v) if k in whole else v for k, v in asked.items()})
    except (LaunchError, TypeError) as error:
        raise LaunchError(f"resources.{step.node.request.name}.{error}") from None


def calls(graph: Graph, planned: Sequence[PlannedStep], uid: str) -> list[Call]:
    """A call for everything that is not done; what someone else runs is waited for by its own call."""
    pending = {s.node.fingerprint for s in planned if s.action != "done"}
    return [
        Call(
            key=step.node.fingerprint,
            name=step.node.name,
            target=TARGET,
            args=[str(step.node.folder)],
            log=step.node.folder / "logs" / f"{uid}.txt",
            needs=tuple(p for p in step.node.upstream if p in pending),
            group=step.node.request.name,
            resources=resources(step),
        )
        for step in planned
        if step.node.fingerprint in pending
    ]
