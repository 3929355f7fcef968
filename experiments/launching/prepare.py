"""Writes what a launcher needs before it starts: requests, how to run them, links, and the record of this execution."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.config.sweep import label
from experiments.planning.graph import Graph, Node
from experiments.planning.plan import PlannedStep
from experiments.store import provenance
from experiments.store.claims import Owner
from experiments.store.documents import InputName, Launch, Request, Source
from experiments.store.records import PipelineItem, PipelineRecord, PipelineStep, new_uid, sound_records
from experiments.store.step_folder import Store
from experiments.store.typed_json import plain
from experiments.store.upkeep.repair import repair_steps
from maskgit_core.errors import ArtifactError
from maskgit_core.files import sweep_leftovers


def prepare(graph: Graph, planned: Sequence[PlannedStep], store: Store, *, uid: str | None = None) -> str:
    """Makes the step folders of everything planned and the record of this execution; returns its uid.

    Nothing here marks anything done. A request is made once and never changed; the launch says how this execution
    runs it.

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
    for place in (store.root, store.root / "pipelines", store.root / "experiments" / graph.experiment):
        sweep_leftovers(place)
    pipeline_record(graph, planned, store, uid).save(store.root)
    return uid


def keep_wanted(graph: Graph, planned: Sequence[PlannedStep], store: Store) -> None:
    """Records an execution that has nothing to do, where no other of its experiment wants all its steps.

    Else what was just asked for and found done would be there for `maskgit gc` to take, and tables, `status` and
    `compare` would not know that this experiment has it too.
    """
    records, _ = sound_records(store.root)
    wanted = {
        entry.fingerprint for record in records if record.experiment == graph.experiment for entry in record.steps
    }
    if all(step.action == "done" for step in planned) and not wanted.issuperset(s.node.fingerprint for s in planned):
        with contextlib.suppress(ArtifactError, OSError):  # somebody else's store may be read-only for us
            link_experiment(graph, store)
            pipeline_record(graph, planned, store, new_uid()).save(store.root)


def mend(graph: Graph, store: Store) -> list[str]:
    """Repairs damaged documents of a graph's steps before it is planned; one line for each.

    Raises:
        ArtifactError: a claim is damaged, or the disk refuses.
    """
    lines = repair_steps(store, [node.folder for node in graph.nodes.values()])
    for node in graph.nodes.values():
        if node.maker is None and node.folder.is_dir():
            lines += _other_request(node)
            if not (node.folder / Request.FILE).exists():
                write_request(node, graph, store)
    return lines


def _other_request(node: Node) -> list[str]:
    """Sets a request aside that does not ask for what its step is: well-formed, and yet some of it was changed."""
    found, asked = Request.read(node.folder), node.request
    if found is None:
        return []
    shared = found.config.keys() & asked.config.keys()  # options that are new since, and neutral, are not in it
    same = found.fingerprint == node.fingerprint and (found.stage, found.version) == (asked.stage, asked.version)
    same = same and all(plain(found.config[key]) == plain(asked.config[key]) for key in shared)
    if same:
        return []
    path = node.folder / Request.FILE
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return [f"{path}: was damaged (it does not ask for what its step was made of); set aside as {aside.name}, rebuilt"]


def write_request(node: Node, graph: Graph, store: Store) -> None:
    """Writes the request unless it is there."""
    asked = node.request
    request = Request(
        fingerprint=node.fingerprint,
        stage=asked.stage,
        module=asked.module,
        version=asked.version,
        kind=asked.kind,
        config=asked.config,
        identity=asked.identity,
        modules=asked.modules,
        outside=node.outside,
        inputs={
            param: tuple(
                Source(fingerprint=p, folder=os.path.relpath(graph.nodes[p].folder, store.root)) for p in fingerprints
            )
            for param, fingerprints in node.inputs.items()
        },
    )
    request.create(node.folder)


def write_launch(node: Node, graph: Graph, uid: str) -> None:
    """Writes the launch: names, parameters of the sweep, and everything that never enters a fingerprint."""
    plugins = tuple(graph.settings.get("plugins") or ())
    launch = Launch(
        name=node.name,
        step=node.request.name,
        params=node.params,
        experiment=graph.experiment,
        pipeline=uid,
        execution=node.request.execution,
        content={k: resolved(v) for k, v in node.request.content.items()},
        weights={k: _weights_place(v) for k, v in node.request.weights.items()},
        resources=node.request.resources,
        plugins=plugins,
        python_path=tuple(plugin_path(plugins)),
        inputs={p: InputName(name=graph.nodes[p].request.name, params=graph.nodes[p].params) for p in node.upstream},
    )
    launch.write(node.folder)


def plugin_path(plugins: Sequence[str]) -> list[str]:
    """The folders that hold the plugin packages, so that a job in another process finds them."""
    folders = []
    for name in plugins:
        spec = find_spec(name)
        folders += [str(Path(p).parent.absolute()) for p in (spec.submodule_search_locations or [] if spec else [])]
    return list(dict.fromkeys(folders))


def resolved(value: Any) -> str:
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
        name = name.replace("/", "_")
        if len(name.encode()) > 200:  # two long labels must not share a link
            name = f"{name.encode()[:180].decode(errors='ignore')}-{node.fingerprint[:16]}"
        link = place / name
        target = os.path.relpath(node.folder, place)
        with contextlib.suppress(OSError):
            if os.path.islink(link) and os.readlink(link) == target:
                continue
            temporary = place / f".link-{uuid.uuid4().hex[:8]}"
            os.symlink(target, temporary)
            os.replace(temporary, link)


def pipeline_record(graph: Graph, planned: Sequence[PlannedStep], store: Store, uid: str) -> PipelineRecord:
    """The record of one execution; the action of each step is the plan's: which are reused, which run."""
    owner = Owner.me()
    return PipelineRecord(
        uid=uid,
        experiment=graph.experiment,
        description=graph.description,
        overrides=graph.overrides,
        command="maskgit run " + " ".join(graph.overrides),
        user=owner.user,
        owner=owner,
        host=owner.host,
        time=time.time(),
        code=provenance.code_state().brief(),
        settings=graph.settings,
        items=tuple(PipelineItem(params=i.params, label=label(i.params), steps=i.steps) for i in graph.items),
        steps=tuple(step_entry(step, store.root) for step in planned),
    )


def step_entry(step: PlannedStep, root: Path) -> PipelineStep:
    """A planned step as the record of an execution in the store at `root` has it."""
    node = step.node
    return PipelineStep(
        name=node.name,
        step=node.request.name,
        stage=node.request.stage,
        kind=node.request.kind,
        fingerprint=node.fingerprint,
        folder=os.path.relpath(node.folder, root),
        params=node.params,
        needs=tuple(node.upstream),
        action=step.action,
        reason=step.reason,
        old_code=step.old_code,
    )
