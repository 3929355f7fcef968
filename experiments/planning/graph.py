"""The DAG of a request: nodes (steps with their fingerprints), the pipeline's items and the graph of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.config import sweep as sweeps
from experiments.config.checker import StepRequest
from experiments.store.step_folder import Store
from experiments.store.typed_json import Options


@dataclass(frozen=True)
class Node:
    """A step with its inputs: a node of the DAG. Two sweep points that ask for the same share it."""

    request: StepRequest
    fingerprint: str
    label: str
    folder: Path
    inputs: Mapping[str, tuple[str, ...]]  # parameter -> upstream fingerprints
    outside: Mapping[str, str]  # dotted key -> content digest
    params: Mapping[str, object]  # the sweep's values that lead to it (and to no other value)
    maker: str | None = None  # the training that publishes it, where it is a kept checkpoint: it has no run of its own

    @property
    def name(self) -> str:
        """The step's name; sweep points that differ are told apart by their values."""
        return f"{self.request.name}[{sweeps.label(self.params)}]" if self.params else self.request.name

    @property
    def upstream(self) -> list[str]:
        """Fingerprints of all inputs."""
        return list(dict.fromkeys(p for several in self.inputs.values() for p in several))


@dataclass(frozen=True)
class Item:
    """One point of the sweep: its values and the steps (name -> fingerprint) it consists of."""

    params: Mapping[str, object]
    steps: Mapping[str, str]


@dataclass(frozen=True)
class Graph:
    """The whole DAG of one execution; `nodes` is in topological order."""

    experiment: str
    description: str
    nodes: Mapping[str, Node]
    items: tuple[Item, ...]
    settings: Options  # launcher, paths, tracking: how, not what
    overrides: tuple[str, ...] = ()
    configs: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    outside: tuple[str, ...] = ()  # steps that are needed but not asked for (`--only`, `--from`): they must be finished
    absent: tuple[str, ...] = ()  # weights that are nowhere to be had, so that no fingerprint that counts them is known
    notes: tuple[str, ...] = ()  # what was found in a folder of pictures, and the sizes chosen for it
    left_out: tuple[str, ...] = ()  # steps that lack published weights, each with the command that fetches them

    def by_step(self) -> dict[str, list[Node]]:
        """Nodes grouped by step name."""
        grouped: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            grouped.setdefault(node.request.name, []).append(node)
        return grouped


def store_of(graph: Graph) -> Store:
    """The store a graph's settings name."""
    return Store(Path(str((graph.settings.get("paths") or {}).get("store", "runs"))))
