"""From configs to the DAG: every step of every sweep point once, with its fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from experiments import config as configs
from experiments import sweep as sweeps
from experiments.artifacts import Store, fingerprint
from experiments.door import Door, StepRequest
from experiments.protocols import with_further_protocols
from experiments.settings import checked
from maskgit_core.errors import ConfigError

#: (dotted key, value, "content" | "weights") -> digest
Digest = Callable[[str, Any, str], str]


@dataclass(frozen=True)
class Node:
    """A step with its inputs: a node of the DAG. Two sweep points that ask for the same share it."""

    request: StepRequest
    fingerprint: str
    label: str
    folder: Path
    inputs: Mapping[str, tuple[str, ...]]  # parameter -> upstream fingerprints
    outside: Mapping[str, str]  # dotted key -> content digest
    params: Mapping[str, Any]  # the sweep's values that lead to it (and to no other value)

    @property
    def name(self) -> str:
        """The step's name; sweep points that differ are told apart by their values."""
        return f"{self.request.name}[{sweeps.label(self.params)}]" if self.params else self.request.name

    @property
    def upstream(self) -> list[str]:
        """Fingerprints of all inputs."""
        return list(dict.fromkeys(p for prints in self.inputs.values() for p in prints))


@dataclass(frozen=True)
class Item:
    """One point of the sweep: its values and the steps (name -> fingerprint) it consists of."""

    params: Mapping[str, Any]
    steps: Mapping[str, str]


@dataclass(frozen=True)
class Graph:
    """The whole DAG of one execution; `nodes` is in topological order."""

    experiment: str
    description: str
    nodes: Mapping[str, Node]
    items: tuple[Item, ...]
    settings: Mapping[str, Any]  # launcher, paths, tracking: how, not what
    overrides: tuple[str, ...] = ()
    configs: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def by_step(self) -> dict[str, list[Node]]:
        """Nodes grouped by step name."""
        grouped: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            grouped.setdefault(node.request.name, []).append(node)
        return grouped


def plan_configs(
    arguments: Sequence[str], config_dirs: Sequence[Path] = ()
) -> tuple[list[sweeps.Point], list[dict[str, Any]]]:
    """The sweep's points and each one's resolved config; Hydra composes once per distinct set of group choices."""
    return _read(configs.parse(arguments, config_dirs), config_dirs)


def _read(asked: configs.Overrides, config_dirs: Sequence[Path]) -> tuple[list[sweeps.Point], list[dict[str, Any]]]:
    if asked.choice("experiment") is None:
        names = ", ".join(configs.group_names("experiment", config_dirs))
        raise ConfigError(f"experiment: missing; add experiment=NAME, one of [{names}]")
    known = set(configs.groups(config_dirs))
    composed: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def base(extra: Sequence[tuple[str, str]]) -> dict[str, Any]:
        choices = tuple(dict([*asked.choices, *extra]).items())
        if choices not in composed:
            config = configs.compose(choices, config_dirs)
            for key in asked.removed:
                config = configs.without(config, key)
            for key, value in asked.values:
                config = configs.with_value(config, key, value)
            composed[choices] = config
        return composed[choices]

    @cache
    def protocol_file(name: str) -> dict[str, Any]:
        return configs.read_choice("protocol", name, config_dirs)

    first = base([])
    block = first.get("sweep")
    if isinstance(block, str):
        block = sweeps.read_file(block, [configs.CONF, *config_dirs])
    points = sweeps.expand(block, asked.sweeps)
    resolved_base: dict[int, dict[str, Any]] = {}
    found = []
    for point in points:
        extra = [(k, str(v)) for k, v in point.items() if k.split("@")[0] in known and not isinstance(v, Mapping)]
        for key, name in extra:
            configs.check_choice(key.split("@")[0], name, config_dirs)
        start = base(extra)
        values = {k: v for k, v in point.items() if k not in dict(extra)}
        config = _resolved(start, values, resolved_base)
        if "further_protocols" in config:
            config = configs.resolve(with_further_protocols(config, protocol_file))
        found.append(config)
    return points, found


def _resolved(start: dict[str, Any], values: Mapping[str, Any], cache: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Applies a point's values; resolves once per base where no interpolation could see them."""
    semantic = {k: v for k, v in start.items() if k not in ("paths", "launcher", "tracking")}
    if values and (configs.has_interpolation(semantic) or configs.has_interpolation(dict(values))):
        for key, value in values.items():
            start = configs.with_value(start, key, value)
        return configs.resolve(start)
    if id(start) not in cache:
        cache[id(start)] = configs.resolve(start)
    config = cache[id(start)]
    for key, value in values.items():
        config = configs.with_value(config, key, value)
    return config


def build(
    arguments: Sequence[str],
    config_dirs: Sequence[Path] = (),
    digest: Digest | None = None,
    check: Callable[[Mapping[str, Any]], object] | None = None,
    fetch: Callable[[str], object] | None = None,
) -> Graph:
    """The graph of `maskgit run ARGUMENTS`.

    Args:
        arguments: `key=value` as typed.
        config_dirs: folders with config groups besides our own.
        digest: of outside content; None: files are read (and their hashes remembered in the store).
        check: is shown the settings before anything outside is read; raises what is wrong with them.
        fetch: brings published weights that are missing (`maskgit run`); None: nothing is downloaded.

    Raises:
        ConfigError, DataError, WeightsError: whatever is wrong with the request, before anything is written.
    """
    asked = configs.parse(arguments, config_dirs)
    points, resolved = _read(asked, config_dirs)
    settings = checked(resolved[0])
    store = Store(Path(settings["paths"].get("store", "runs")))
    door = Door(settings["plugins"], configs.groups(config_dirs))
    if digest is None:
        from experiments.outside import Outside

        digest = Outside(store.root, fetch)
    requests = [door.steps(config) for config in resolved]
    if check is not None:
        check(settings)
    nodes, items = _Builder(store, digest).build(points, requests)
    return Graph(
        experiment=str(asked.choice("experiment")),
        description=str(resolved[0].get("description") or ""),
        nodes=nodes,
        items=items,
        settings={**settings, "config_dirs": [str(d) for d in config_dirs]},
        overrides=tuple(arguments),
        configs=tuple(resolved),
    )


class _Builder:
    def __init__(self, store: Store, digest: Digest) -> None:
        self._store = store
        self._digest = digest
        self._nodes: dict[str, Node] = {}
        self._params: dict[str, dict[str, Any]] = {}

    def build(
        self, points: Sequence[sweeps.Point], requests: Sequence[Mapping[str, StepRequest]]
    ) -> tuple[dict[str, Node], tuple[Item, ...]]:
        order = topological(requests[0])
        if any(list(r) != list(requests[0]) for r in requests):
            raise ConfigError("sweep: all points must have the same steps; sweep over values, not over pipelines")
        prints: list[dict[str, str]] = [{} for _ in points]
        for name in order:
            for point, request, known in zip(points, requests, prints, strict=True):
                known[name] = self._node(request[name], known, prints, point)
        nodes = {p: self._with_params(node) for p, node in self._nodes.items()}
        return nodes, tuple(Item(dict(pt), pr) for pt, pr in zip(points, prints, strict=True))

    def _node(
        self, request: StepRequest, known: Mapping[str, str], prints: Sequence[Mapping[str, str]], point: sweeps.Point
    ) -> str:
        inputs = {}
        for param, needs in request.needs.items():
            found: list[str] = []
            for need in needs:
                found += [p[need.step] for p in prints] if need.all_items else [known[need.step]]
            inputs[param] = tuple(dict.fromkeys(found))
        outside = {k: self._digest(k, v, "content") for k, v in request.content.items()}
        outside |= {k: self._digest(k, v, "weights") for k, v in request.weights.items()}
        asked = {
            "stage": request.stage,
            "version": request.version,
            "config": request.identity,
            # A fan-in is a set: adding a point or changing their order must not re-address what stays the same.
            "inputs": {k: sorted(v) for k, v in inputs.items()},
            "outside": outside,
        }
        if not request.module.startswith("experiments."):
            asked["module"] = request.module
        print_ = fingerprint(asked)
        if print_ not in self._nodes:
            label = self._label(request, inputs)
            folder = self._store.folder(request.stage, label, print_)
            self._nodes[print_] = Node(request, print_, label, folder, inputs, outside, {})
            self._params[print_] = dict(point)
        else:
            shared = self._params[print_]
            self._params[print_] = {k: v for k, v in shared.items() if k in point and point[k] == v}
        return print_

    def _with_params(self, node: Node) -> Node:
        """The values this node shares with no other value of the sweep: empty for a step all points share."""
        from dataclasses import replace

        return replace(node, params=self._params[node.fingerprint])

    def _label(self, request: StepRequest, inputs: Mapping[str, Sequence[str]]) -> str:
        """Words a person would say: the components of the step, else those of what it works on."""
        words = [str(v["name"]) for v in request.config.values() if isinstance(v, Mapping) and "name" in v]
        if not words:
            words = [self._nodes[p].label for prints in inputs.values() for p in prints[:1]]
        text = "-".join(dict.fromkeys("-".join(words).replace("/", "-").split("-"))) or request.stage
        return text[:40].strip("-")


def topological(requests: Mapping[str, StepRequest]) -> list[str]:
    """Step names, upstream first.

    Raises:
        ConfigError: a cycle; names its steps.
    """
    done: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"pipeline.steps.{name}.needs: a cycle ({cycle}); remove one of these needs")
        path.append(name)
        for needs in requests[name].needs.values():
            for need in needs:
                visit(need.step)
        path.pop()
        done.append(name)

    for name in requests:
        visit(name)
    return done
