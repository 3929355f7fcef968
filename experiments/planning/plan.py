"""The plan of a graph: steps that are done, steps that will run, and why; `maskgit plan` and `run` share it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from experiments.config.schema.signatures import source_file
from experiments.planning.difference import difference, flat_request, request_of
from experiments.planning.graph import Graph, Node
from experiments.planning.made_for import unlike_model
from experiments.store.claims import JobAlive
from experiments.store.code_digests import CodeNow
from experiments.store.documents import Manifest, Record, Request
from experiments.store.step_folder import Status, check_outputs, status
from experiments.store.typed_json import Block, Options, plain
from maskgit_core.errors import ArtifactError, ConfigError

Action = Literal["done", "running", "queued", "run", "check"]
_REDO = "asked for with --redo"
_OTHER_CODE = "other code than the rest of the sweep"


@dataclass(frozen=True)
class PlannedStep:
    """A node with what will happen to it.

    `done`: reused. `running`, `queued`: someone does it already. `run`: will run. `check`: done, but an input will be
    rebuilt; it runs only if that comes out differently.
    """

    node: Node
    action: Action
    reason: str
    status: Status
    warnings: tuple[str, ...] = field(default=())
    identified: bool = True  # false where absent weights leave the fingerprint unknown
    old_code: tuple[str, ...] = ()  # modules that have changed since a step that is done was made

    @property
    def again(self) -> bool:
        """True where a finished step is made anew although nothing that was asked has changed."""
        return self.action == "run" and self.reason.startswith((_REDO, _OTHER_CODE))


class Planner:
    """Compares a graph with the store.

    Args:
        redo: step names (or fingerprints) to run again although they are done.
        job_alive: asks the queue about a job id.
        queued: fingerprint -> entry of the queue, for steps that somebody has submitted.
        reuse_old_code: leave the finished points of a sweep as they are although others run with code that has changed.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        redo: Collection[str] = (),
        job_alive: JobAlive | None = None,
        queued: Options | None = None,
        reuse_old_code: bool = False,
    ) -> None:
        self._graph = graph
        self._queued = queued or {}
        self._redo = set(redo)
        self._reuse_old_code = reuse_old_code
        self._mixing: Mapping[str, tuple[str, ...]] = {}  # fingerprint -> modules that have changed since it was made
        self._job_alive = job_alive
        self._siblings: dict[Path, list[tuple[Path, Block]]] = {}
        self._code = CodeNow(source_file)
        known = {n.request.name for n in graph.nodes.values()} | {n.name for n in graph.nodes.values()}
        for name in self._redo - known:
            raise ConfigError(f"--redo {name}: there is no such step; one of [{', '.join(sorted(known)[:30])}]")

    def plan(self) -> list[PlannedStep]:
        """Every step in topological order.

        Raises:
            ArtifactError: a finished step's files no longer match its manifest.
        """
        planned = self._steps()
        while not self._reuse_old_code and (mixing := self._other_code(planned.values())):
            self._mixing = {**self._mixing, **mixing}
            planned = self._steps()
        for step in planned.values():
            if step.node.request.name in self._graph.outside and step.action in ("run", "check"):
                raise ConfigError(
                    f"{step.node.name}: is not finished ({step.reason}) and the steps asked for need it; "
                    f"run it first: --until {step.node.request.name}"
                )
        return list(planned.values())

    def _steps(self) -> dict[str, PlannedStep]:
        planned: dict[str, PlannedStep] = {}
        for fingerprint, node in self._graph.nodes.items():
            planned[fingerprint] = self._step(node, planned)
        return planned

    def _other_code(self, planned: Iterable[PlannedStep]) -> dict[str, tuple[str, ...]]:
        """Finished points of a sweep that were made by other code than its other points: one number, two versions."""
        groups: dict[str, list[PlannedStep]] = {}
        for step in planned:
            if step.node.maker is None and step.node.request.name not in self._graph.outside:
                groups.setdefault(step.node.request.name, []).append(step)
        mixed = [group for group in groups.values() if len({step.old_code for step in group}) > 1]
        return {s.node.fingerprint: s.old_code for group in mixed for s in group if s.old_code}

    def _step(self, node: Node, planned: Mapping[str, PlannedStep]) -> PlannedStep:
        if node.maker is not None:
            return self._kept(node, planned[node.maker], planned)
        step = self._stored(node, planned)
        line = unlike_model(node, self._graph.nodes)
        return replace(step, warnings=(*step.warnings, line)) if line else step

    def _stored(self, node: Node, planned: Mapping[str, PlannedStep]) -> PlannedStep:
        state = status(node.folder, self._job_alive)
        if state.state == "running":
            where = state.owner.where() if state.owner else "somewhere"
            return PlannedStep(node, "running", f"running as {where}", state)
        entry = self._queued.get(node.fingerprint)
        if entry is not None and state.state != "done":
            return PlannedStep(node, "queued", f"job {entry.job} of {entry.user} ({entry.state.lower()})", state)
        pending = [planned[p] for p in node.upstream if planned[p].action != "done"]
        if node.request.name in self._redo or node.name in self._redo:
            return PlannedStep(node, "run", _REDO, state)
        if node.fingerprint in self._mixing and state.state == "done":
            names = _few(self._mixing[node.fingerprint])
            return PlannedStep(node, "run", f"{_OTHER_CODE} ({names} has changed); --reuse-old-code keeps it", state)
        if state.state != "done":
            return PlannedStep(node, "run", self._why(node, state, pending), state)
        if pending:
            names = ", ".join(p.node.name for p in pending[:3])
            return PlannedStep(node, "check", f"done; runs again only if {names} comes out differently", state)
        assert state.manifest is not None
        changed = self._changed_inputs(state.manifest, node, planned)
        if changed:
            return PlannedStep(node, "run", f"input rebuilt: {', '.join(changed)}", state)
        try:
            check_outputs(node.folder, state.manifest)
        except ArtifactError as error:
            raise ArtifactError(f"{node.name}: {error}") from None
        return PlannedStep(node, "done", "done", state, *self._drift(node))

    def _kept(self, node: Node, maker: PlannedStep, planned: Mapping[str, PlannedStep]) -> PlannedStep:
        """A checkpoint that a training keeps: usable once published, whatever becomes of the training."""
        state, again = status(node.folder), maker.again
        above = [planned[p] for p in maker.node.upstream]
        inputs = {
            s.node.fingerprint: s.status.manifest.digest for s in above if s.action == "done" and s.status.manifest
        }
        is_current = len(inputs) == len(above) and state.manifest is not None and state.manifest.inputs == inputs
        if is_current and not again:
            return PlannedStep(node, "done", "done", state)
        if maker.action == "done":
            raise ArtifactError(f"{node.folder}: {node.name} is gone; run again with --redo {maker.node.name}")
        return PlannedStep(node, "run", f"published by {maker.node.name} on its way", state)

    def _changed_inputs(self, manifest: Manifest, node: Node, planned: Mapping[str, PlannedStep]) -> list[str]:
        changed = []
        for fingerprint in node.upstream:
            present = planned[fingerprint].status.manifest
            if present is None or manifest.inputs.get(fingerprint) != present.digest:
                changed.append(planned[fingerprint].node.name)
        return changed

    # -- reasons ---------------------------------------------------------------------------------------------------
    def _why(self, node: Node, state: Status, pending: list[PlannedStep]) -> str:
        if state.state in ("failed", "stopped", "killed", "cancelled"):
            last = " ".join(state.reason.split())[:160]
            return f"attempt {state.attempt} {state.state}{f': {last}' if last else ''}; goes on from what it saved"
        nearest = self._nearest(node)
        if nearest is None:
            return "never run"
        folder, keys = nearest
        more = " ..." if len(keys) > 4 else ""
        return f"differs from {folder.parent.name}/{folder.name}: {'; '.join(keys[:4])}{more}"

    def _nearest(self, node: Node) -> tuple[Path, list[str]] | None:
        """The finished step of the same stage that differs in the fewest keys, and those keys."""
        place = node.folder.parent
        if place not in self._siblings:
            done = sorted(place.glob(f"*/{Manifest.FILE}"), key=lambda p: p.stat().st_mtime, reverse=True)[:40]
            read = [(p.parent, Request.read(p.parent)) for p in done]
            self._siblings[place] = [(folder, flat_request(plain(r))) for folder, r in read if r is not None]
        if not self._siblings[place]:
            return None
        mine = flat_request(request_of(node))
        best: tuple[Path, list[str]] | None = None
        for folder, theirs in self._siblings[place]:
            keys = difference(theirs, mine, node.request.name)
            if best is None or len(keys) < len(best[1]):
                best = (folder, keys)
        return best

    def _drift(self, node: Node) -> tuple[tuple[str, ...], bool, tuple[str, ...]]:
        """A warning where the code that a finished step used has changed since, and the modules that have."""
        record = Record.read(node.folder)
        changed = tuple(self._code.changed(record.science_files)) if record else ()
        if not changed:
            return (), True, ()
        told = f"its code has changed since it ran ({_few(changed)}); reused as it is, --redo runs it again"
        return (f"{node.name}: {told}",), True, changed


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def summary(planned: list[PlannedStep]) -> dict[str, int]:
    """How many steps there are of each action."""
    counts: dict[str, int] = {}
    for step in planned:
        counts[step.action] = counts.get(step.action, 0) + 1
    return counts
