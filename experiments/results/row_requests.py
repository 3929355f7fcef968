"""Requests of a table's rows, so that a cell is filled only by a run of just that request."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from experiments.config import compose as configs
from experiments.planning.graph import Graph, Node
from experiments.planning.pipeline import build, weights_of
from experiments.results.fill_commands import fill_arguments
from experiments.results.results import Result
from experiments.store.documents import Request
from experiments.store.records import PipelineStep, step_params
from experiments.store.typed_json import Options
from maskgit_core.errors import MaskgitError
from maskgit_core.weights.download import missing

Run = Options  # `run` of a row: experiment, step, where, overrides


class RowRequests:
    """Composes the experiments of a table's rows, each once.

    Args:
        config_dirs: folders with experiments besides the shipped ones.
    """

    def __init__(self, config_dirs: Sequence[Path] = ()) -> None:
        self._dirs = tuple(config_dirs)
        self._graphs: dict[str, Graph | str] = {}

    def unset(self, run: Run) -> list[str]:
        """Keys that the experiment leaves to the user (`???`): a command without them does not run."""
        return _unset(str(run["experiment"]), tuple(map(str, run.get("overrides", ()))), self._dirs)

    def command(self, run: Run) -> str:
        """The whole command that fills the row, with a word in capitals or `...` for what the user must give."""
        words = fill_arguments(str(run["experiment"]), run.get("overrides", ()), self.unset(run), self._dirs)
        return shlex.join(["maskgit", "run", *words])

    def absent(self, run: Run) -> list[str]:
        """Published weights that the run needs and that are not on this machine."""
        try:
            return missing(weights_of(self._asked(run), str(run.get("step", "evaluate")), self._dirs))
        except MaskgitError:  # an experiment that cannot be composed: its own command says so
            return []

    def differences(self, run: Run, result: Result) -> list[str]:
        """Values by which a result's request differs from the row's: `sample.num_samples 40 (not 50000)`.

        Seeds, values that the row names in `where`, and keys of execution do not count. Empty: it is the row's run.
        """
        graph = self._graph(run)
        if isinstance(graph, str):
            return [f"its experiment cannot be composed ({graph})"]
        where = {str(k): str(v) for k, v in (run.get("where") or {}).items()}
        wanted = [w for w in _requests_of(graph, str(run.get("step", "evaluate"))) if _agrees(w[0], where)]
        if not wanted:
            return [f"no point of experiment {run['experiment']} has {where}"]
        return min((_differences(config, counted, result, where) for config, counted in wanted), key=len)

    def _asked(self, run: Run) -> list[str]:
        overrides = [str(text) for text in run.get("overrides", ())]
        return [f"experiment={run['experiment']}", *overrides, *(f"{key}=unset" for key in self.unset(run))]

    def _graph(self, run: Run) -> Graph | str:
        key = repr((run["experiment"], list(run.get("overrides", ()))))
        if key not in self._graphs:
            try:
                self._graphs[key] = build(self._asked(run), self._dirs, lambda *outside: "0" * 64)
            except MaskgitError as error:
                self._graphs[key] = str(error)[:200]
        return self._graphs[key]


@cache
def _unset(experiment: str, overrides: tuple[str, ...], dirs: tuple[Path, ...]) -> list[str]:
    try:
        asked = configs.parse([f"experiment={experiment}", *overrides], dirs)
        config = configs.compose(asked.choices, dirs)
    except MaskgitError:
        return []
    for key, value in asked.values:
        config = configs.with_value(config, key, value)
    keys: list[str] = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif value == "???":
            keys.append(prefix)

    walk("", config)
    return keys


def _requests_of(graph: Graph, step: str) -> list[tuple[dict[str, str], set[str]]]:
    """For every point's step of that name: its config with that upstream, and the keys that count in fingerprints."""
    requests = []
    for first in (node for node in graph.nodes.values() if node.request.name == step):
        config: dict[str, str] = {}
        counted: set[str] = set()
        queue, seen = [first], set()
        while queue:  # nearest first, as `records.effective_config` reads a store
            node = queue.pop(0)
            if node.fingerprint in seen:
                continue
            seen.add(node.fingerprint)
            request = node.request
            entry = PipelineStep(name=node.name, step=request.name, stage=request.stage, kind=request.kind,
                                 fingerprint=node.fingerprint, folder="", params={})  # fmt: skip
            config = {**step_params(entry, _request(node, request.config)), **config}
            counted |= set(step_params(entry, _request(node, request.identity)))
            queue += [graph.nodes[f] for f in node.upstream if f in graph.nodes]
        requests.append((config, counted))
    return requests


def _request(node: Node, config: Mapping[str, object]) -> Request:
    asked = node.request
    return Request(fingerprint=node.fingerprint, stage=asked.stage, module=asked.module, version=asked.version,
                   kind=asked.kind, config=dict(config))  # fmt: skip


def _agrees(config: Mapping[str, str], where: Mapping[str, str]) -> bool:
    return all(key not in config or _same(config[key], value) for key, value in where.items())


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _differences(config: Mapping[str, str], counted: set[str], result: Result, where: Mapping[str, str]) -> list[str]:
    lines = []
    for key in sorted({*config, *result.config}):
        is_swept_choice = "." not in key and key in result.params
        if key.endswith(".seed") or key in where or is_swept_choice:
            continue
        if key not in result.config:
            if key in counted:  # an option that came later, at another value than the old behaviour's
                lines.append(f"{key} unset (not {config[key]})")
        elif key not in config:
            lines.append(f"{key} {result.config[key]}")
        elif not _same(result.config[key], config[key]):
            lines.append(f"{key} {result.config[key]} (not {config[key]})")
    return lines
