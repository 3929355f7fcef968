"""Writes what a launcher needs before it starts: requests, how to run them, links, and the record of this execution."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.config.sweep import label
from experiments.planning.graph import Graph, Node
from experiments.planning.plan import PlannedStep
from experiments.store import provenance
from experiments.store.claims import Owner
from experiments.store.records import new_uid
from experiments.store.step_folder import Store
from maskgit_core.files import create_exclusively, write_json

FORMAT = 1


def prepare(graph: Graph, planned: Sequence[PlannedStep], store: Store, *, uid: str | None = None) -> str:
    """Makes the step folders of everything planned and the record of this execution; returns its uid.

    Nothing here marks anything done. `request.json` is made once and never changed; `launch.json` says how this
    execution runs it.

    Raises:
        ArtifactError: the store cannot be written; names the folder and the remedy.
    """
    uid = uid or new_uid()
    pending = [step.node for step in planned if step.action in ("run", "check") and step.node.maker is None]

    def write(node: Node) -> None:
        write_request(node, graph, store)
        write_launch(node, graph, uid)

    with ThreadPoolExecutor(16) as pool:  # the time goes into syncing to disk, which many can share
        list(pool.map(write, pending))
    link_experiment(graph, store)
    write_json(store.root / "pipelines" / f"{uid}.json", pipeline_record(graph, planned, store, uid))
    return uid


def write_request(node: Node, graph: Graph, store: Store) -> None:
    """Writes `request.json` unless it is there: what was asked, by whom does not matter."""
    request = {
        "format": FORMAT,
        "fingerprint": node.fingerprint,
        "stage": node.request.stage,
        "module": node.request.module,
        "version": node.request.version,
        "kind": node.request.kind,
        "config": dict(node.request.config),
        "identity": dict(node.request.identity),
        "modules": dict(node.request.modules),
        "outside": dict(node.outside),
        "inputs": {
            param: [
                {"fingerprint": p, "folder": os.path.relpath(graph.nodes[p].folder, store.root)} for p in prints
            ]
            for param, prints in node.inputs.items()
        },
    }  # fmt: skip
    create_exclusively(node.folder / "request.json", request)


def write_launch(node: Node, graph: Graph, uid: str) -> None:
    """Writes `launch.json`: names, parameters of the sweep, and everything that never enters a fingerprint."""
    launch = {
        "name": node.name,
        "step": node.request.name,
        "params": dict(node.params),
        "experiment": graph.experiment,
        "pipeline": uid,
        "execution": dict(node.request.execution),
        "content": {k: resolved(v) for k, v in node.request.content.items()},
        "weights": {k: _weights_place(v) for k, v in node.request.weights.items()},
        "resources": dict(node.request.resources),
        "plugins": list(graph.settings.get("plugins") or ()),
        "python_path": plugin_path(graph.settings.get("plugins") or ()),
        "inputs": {
            p: {"name": graph.nodes[p].request.name, "params": dict(graph.nodes[p].params)} for p in node.upstream
        },
    }
    write_json(node.folder / "launch.json", launch)


def plugin_path(plugins: Sequence[str]) -> list[str]:
    """The folders that hold the plugin packages, so that a job in another process finds them."""
    found = []
    for name in plugins:
        spec = find_spec(name)
        found += [str(Path(p).parent.absolute()) for p in (spec.submodule_search_locations or [] if spec else [])]
    return list(dict.fromkeys(found))


def resolved(value: Any) -> Any:
    """A content path made absolute, so that a job may start in another folder."""
    from maskgit_core.content import resolve

    return str(resolve(value))


def _weights_place(value: str) -> str:
    """A weights file made absolute, as jobs start in another folder; a name of the registry stays as it is."""
    path = Path(value).expanduser()
    return str(path.absolute()) if path.is_file() else value


def link_experiment(graph: Graph, store: Store) -> None:
    """Points `<store>/experiments/<experiment>/<step>[-<item>]` at the folders the experiment uses."""
    place = store.root / "experiments" / graph.experiment
    place.mkdir(parents=True, exist_ok=True)
    for node in graph.nodes.values():
        name = f"{node.request.name}-{label(node.params)}" if node.params else node.request.name
        link = place / name.replace("/", "_")[:200]
        target = os.path.relpath(node.folder, place)
        with contextlib.suppress(OSError):
            if os.path.islink(link) and os.readlink(link) == target:
                continue
            temporary = place / f".link-{uuid.uuid4().hex[:8]}"
            os.symlink(target, temporary)
            os.replace(temporary, link)


def pipeline_record(graph: Graph, planned: Sequence[PlannedStep], store: Store, uid: str) -> dict[str, Any]:
    """One execution as a plain record; `steps[*].action` says at planning time what was reused."""
    code = provenance.code_state()
    owner = Owner.me()
    return {
        "format": FORMAT,
        "uid": uid,
        "experiment": graph.experiment,
        "description": graph.description,
        "overrides": list(graph.overrides),
        "command": "maskgit run " + " ".join(graph.overrides),
        "user": owner.user,
        "owner": asdict(owner),
        "host": socket.gethostname(),
        "time": time.time(),
        "code": {k: v for k, v in code.items() if k != "diff"},
        "settings": dict(graph.settings),
        "items": [{"params": dict(i.params), "label": label(i.params), "steps": dict(i.steps)} for i in graph.items],
        "steps": [_step_entry(step, store) for step in planned],
    }


def _step_entry(step: PlannedStep, store: Store) -> Mapping[str, Any]:
    node = step.node
    return {
        "name": node.name,
        "step": node.request.name,
        "stage": node.request.stage,
        "kind": node.request.kind,
        "fingerprint": node.fingerprint,
        "folder": os.path.relpath(node.folder, store.root),
        "params": dict(node.params),
        "needs": node.upstream,
        "action": step.action,
        "reason": step.reason,
    }
