"""From planned steps to a launcher's calls."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import MISSING
from experiments.config.schema.signatures import read_component, source_file
from experiments.launching.notify import is_wanted
from experiments.planning.graph import Graph
from experiments.planning.plan import PlannedStep
from experiments.store.typed_json import Block
from launchers.calls import Call, LauncherProtocol, Resources
from launchers.retry import Retry
from maskgit_core.errors import ConfigError, LaunchError, unknown_key, unknown_name

TARGET = "experiments.running.job:main"
ARRAY_TASK_TARGET = "experiments.running.array_tasks:main"
ENDED = "experiments.launching.notify:ended"
CLEANUP = "experiments.running.job:clear_claim"
PROGRESS = "experiments.running.advance:mark"


def launcher_names() -> list[str]:
    """Files of `launchers/` that hold a launcher."""
    import launchers

    here = Path(launchers.__path__[0])
    return sorted(p.stem for p in here.glob("*.py") if re.search(r"^class Launcher\b", p.read_text(), re.M))


def load_launcher(block: Mapping[str, object] | None) -> LauncherProtocol:
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
    launcher: LauncherProtocol = import_module(f"launchers.{name}").Launcher(**options)
    return launcher


def resources(step: PlannedStep) -> Resources:
    """A step's resources as the launchers know them.

    Raises:
        LaunchError: not possible; names the step.
    """
    asked: Block = {k: v for k, v in step.node.request.resources.items() if v is not None and k != "num_tasks"}
    whole = ("ranks", "nodes", "cpus_per_task", "gpus_per_task", "pack")
    asked |= {key: int(value) for key, value in asked.items() if key in whole}
    asked["retry"] = Retry.read(asked.get("retry"), f"resources.{step.node.request.name}.retry")
    try:
        return Resources(**asked)
    except (LaunchError, TypeError) as error:
        raise LaunchError(f"resources.{step.node.request.name}.{error}") from None


def calls(
    graph: Graph,
    planned: Sequence[PlannedStep],
    uid: str,
    *,
    chosen: Collection[str] | None = None,
    cut: bool = False,
) -> list[Call]:
    """A call for everything that is not done; what someone else runs is waited for by its own call.

    Args:
        chosen: fingerprints of the steps that get a call; None: all that are not done.
        cut: a step with `resources.num_tasks` above 1 gets as many calls more, each of which makes a share of its
            pieces (`experiments.running.array_tasks`); the step's own call comes after them, makes what they left and
            finishes.
    """
    # A kept checkpoint is published by its training: what needs it waits for that.
    waits_for = {s.node.fingerprint: s.node.maker or s.node.fingerprint for s in planned if s.action != "done"}
    made: list[Call] = []
    for step in planned:
        key = step.node.fingerprint
        if key not in waits_for or step.node.maker is not None or (chosen is not None and key not in chosen):
            continue
        logs = step.node.folder / "logs"
        whole = Call(
            key=key,
            name=step.node.name,
            target=TARGET,
            args=[str(step.node.folder)],
            log=logs / f"{uid}.txt",
            needs=tuple(dict.fromkeys(waits_for[p] for p in step.node.upstream if p in waits_for)),
            group=step.node.request.name,
            resources=resources(step),
            progress=PROGRESS,
            cleanup=CLEANUP,
            ended=ENDED if is_wanted(graph.settings) else "",
        )
        tasks = _array_tasks(whole, num_tasks(step), logs, uid) if cut else []
        made += [*tasks, replace(whole, after=tuple(task.key for task in tasks))]
    return made


def num_tasks(step: PlannedStep) -> int:
    """Independent tasks that a step is cut into; 1: it is not."""
    return max(1, int(step.node.request.resources.get("num_tasks") or 1))


def _array_tasks(whole: Call, count: int, logs: Path, uid: str) -> list[Call]:
    return [
        replace(
            whole,
            key=task_key(whole.key, index),
            name=f"{whole.name}.{index}",
            target=ARRAY_TASK_TARGET,
            args=[*whole.args, index, count],
            log=logs / f"{uid}.task{index}.txt",
            ended="",
        )
        for index in range(count if count > 1 else 0)
    ]


def task_key(fingerprint: str, index: int) -> str:
    """The key of an array task's call; `step_key` gives its step's."""
    return f"{fingerprint}/{index}"


def step_key(key: str) -> str:
    """The fingerprint of the step that a call belongs to."""
    return key.partition("/")[0]
