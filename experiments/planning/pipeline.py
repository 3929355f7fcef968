"""From configs to the DAG: every step of every sweep point once, with its fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.config import compose as configs
from experiments.config import sweep as sweeps
from experiments.config.checker import Checker, StepRequest
from experiments.config.needs import Need, topological
from experiments.config.points import plan_configs, read_points
from experiments.config.reach import PROBE, refuse_unreaching
from experiments.config.settings import checked
from experiments.planning import preflight, toys
from experiments.planning.graph import Graph, Item, Node
from experiments.planning.kept_needs import check_is_kept, stored_request
from experiments.planning.parts import Part
from experiments.store.kept import INPUT, find_model, kept_fingerprint, kept_folder
from experiments.store.step_folder import Store
from experiments.store.typed_json import Options
from experiments.store.typed_json import fingerprint as fingerprint_of
from maskgit_core.errors import ConfigError, WeightsError
from maskgit_core.weights.registry import is_published

#: (dotted key, value, "content" | "weights") -> digest
Digest = Callable[[str, object, str], str]


def weights_of(arguments: Sequence[str], step: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The weights (registry names, files) that a step and everything upstream of it need."""
    requests = with_upstream(arguments, step, config_dirs)
    return list(dict.fromkeys(weight for request in requests for weight in request.weights.values()))


def with_upstream(arguments: Sequence[str], step: str, config_dirs: Sequence[Path] = ()) -> list[StepRequest]:
    """A step and everything upstream of it, each once, in a sweep its first point; none without such a step."""
    requests = _first_requests(tuple(arguments), tuple(config_dirs))
    todo = [step] if step in requests else []
    for name in todo:  # grows as it goes
        todo += [
            n.step
            for needs in requests[name].needs.values()
            for n in needs
            if n.step in requests and n.step not in todo
        ]
    return [requests[name] for name in dict.fromkeys(todo)]


@cache
def _first_requests(arguments: tuple[str, ...], config_dirs: tuple[Path, ...]) -> Mapping[str, StepRequest]:
    _, resolved = plan_configs(arguments, config_dirs)
    return Checker(checked(resolved[0])["plugins"], configs.groups(config_dirs)).steps(resolved[0])


def build(
    arguments: Sequence[str],
    config_dirs: Sequence[Path] = (),
    digest: Digest | None = None,
    check: Callable[[Options], object] | None = None,
    fetch: Callable[[str], object] | None = None,
    part: Part | None = None,
    allow_absent: bool = False,
    points: Sequence[sweeps.Point] | None = None,
) -> Graph:
    """The graph of `maskgit run ARGUMENTS`.

    Args:
        arguments: `key=value` as typed.
        config_dirs: folders with config groups besides our own.
        digest: of outside content; None: files are read (and their hashes remembered in the store).
        check: is shown the settings before anything outside is read; raises what is wrong with them.
        fetch: brings published weights that are missing (`maskgit run`); None: nothing is downloaded.
        part: the steps asked for; None: all.
        allow_absent: weights that are nowhere to be had are listed in the graph instead of refused (`maskgit plan`).
        points: values by dotted key, in the place of the sweep's (`maskgit search`).

    Raises:
        ConfigError, DataError, WeightsError: whatever is wrong with the request, before anything is written.
    """
    asked = configs.parse(arguments, config_dirs)
    points, resolved, keys, first_with = read_points(asked, config_dirs, points)
    settings = checked(resolved[0])
    store = Store(Path(settings["paths"].get("store", "runs")))
    checker = Checker(settings["plugins"], configs.groups(config_dirs))
    digest = digest or _content_digests(store.root, fetch)
    requests: list[Mapping[str, StepRequest]] = [checker.steps(config) for config in resolved]
    if "toy" not in resolved[0]:  # a toy replaces values that were typed
        refuse_unreaching(keys, lambda key: first_with(key, PROBE), checker, requests[0])
    if check is not None:
        check(settings)
    told = toys.make_all(resolved, requests)
    requests, left_out = _possible(requests, resolved[0], digest, allow_absent)
    chosen, outside = (part or Part()).select(requests[0])
    requests = [{name: r for name, r in steps.items() if name in chosen | outside} for steps in requests]
    absent: list[str] = []
    nodes, items = _Builder(store, _noting(digest, absent) if allow_absent else digest).build(points, requests)
    fitted_lines = [line for config in resolved for line in config.get("found") or ()]
    preflight.check(nodes, ranks_count=settings["launcher"].get("name") != "inline")
    return Graph(
        experiment=str(asked.choice("experiment")),
        description=str(resolved[0].get("description") or ""),
        nodes=nodes,
        items=items,
        settings={**settings, "config_dirs": [str(d) for d in config_dirs]},
        overrides=tuple(arguments),
        outside=tuple(sorted(outside)),
        absent=tuple(absent),
        left_out=(*told, *left_out),
        notes=tuple(dict.fromkeys([*fitted_lines, *preflight.fewer_images(nodes)])),
        configs=tuple(resolved),
    )


def _possible(
    requests: list[Mapping[str, StepRequest]], config: Options, digest: Digest, allow_absent: bool
) -> tuple[list[Mapping[str, StepRequest]], Sequence[str]]:
    """The steps whose weights there are, where the pipeline's steps are optional, else all; and what is left out."""
    if not config["pipeline"].get("optional"):
        return requests, ()
    try:
        return _without_weights(requests, digest)
    except WeightsError:  # no step is left
        if not allow_absent:
            raise
        return requests, ()


def _content_digests(root: Path, fetch: Callable[[str], object] | None) -> Digest:
    from experiments.store.content_digests import ContentDigests

    return ContentDigests(root, fetch)


def _noting(digest: Digest, absent: list[str]) -> Digest:
    """`digest`, but weights that are nowhere to be had are added to `absent`."""

    def noted(key: str, value: Any, mark: str) -> str:
        try:
            return digest(key, value, mark)
        except WeightsError:
            if mark != "weights" or not is_published(value):
                raise
            absent.append(value)
            return f"unknown digest of {value}"

    return noted


def _without_weights(
    requests: Sequence[Mapping[str, StepRequest]], digest: Digest
) -> tuple[list[Mapping[str, StepRequest]], Sequence[str]]:
    """`pipeline.optional: true`: steps whose published weights are nowhere to be had are left out, and said.

    Raises:
        WeightsError: no step is left; the first that is missing.
    """
    problems: dict[str, WeightsError] = {}
    lacking: dict[str, list[str]] = {}
    for step in topological(requests[0]):
        for request in requests:
            for key, value in request[step].weights.items():
                if value not in problems:
                    try:
                        digest(key, value, "weights")
                    except WeightsError as error:
                        problems[value] = error
                lacking.setdefault(step, []).extend([value] if value in problems else [])
            upstream = (n.step for needs in request[step].needs.values() for n in needs)
            lacking.setdefault(step, []).extend(w for name in upstream for w in lacking[name])
    kept = [{name: r for name, r in request.items() if not lacking[name]} for request in requests]
    if not kept[0]:
        raise next(iter(problems.values()))
    needed = {step: " ".join(dict.fromkeys(names)) for step, names in lacking.items() if names}
    said = [f"{step} is left out: needs {names}; maskgit weights fetch {names}" for step, names in needed.items()]
    return list(kept), said


class _Builder:
    def __init__(self, store: Store, digest: Digest) -> None:
        self._store = store
        self._digest = digest
        self._nodes: dict[str, Node] = {}
        self._params: dict[str, dict[str, object]] = {}

    def build(
        self, points: Sequence[sweeps.Point], requests: Sequence[Mapping[str, StepRequest]]
    ) -> tuple[dict[str, Node], tuple[Item, ...]]:
        order = topological(requests[0])
        if any(list(r) != list(requests[0]) for r in requests):
            raise ConfigError("sweep: all points must have the same steps; sweep over values, not over pipelines")
        fingerprints: list[dict[str, str]] = [{} for _ in points]
        for name in order:
            for point, request, known in zip(points, requests, fingerprints, strict=True):
                known[name] = self._node(request[name], known, fingerprints, point)
        nodes = {p: self._with_params(node) for p, node in self._nodes.items()}
        return nodes, tuple(Item(dict(pt), pr) for pt, pr in zip(points, fingerprints, strict=True))

    def _node(
        self,
        request: StepRequest,
        known: Mapping[str, str],
        fingerprints: Sequence[Mapping[str, str]],
        point: sweeps.Point,
    ) -> str:
        inputs = {}
        for param, needs in request.needs.items():
            sources: list[str] = []
            for need in needs:
                sources += self._sources(need, f"{request.name}.{param}", known, fingerprints)
            inputs[param] = tuple(dict.fromkeys(sources))
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
        fingerprint = fingerprint_of(asked)
        if fingerprint not in self._nodes:
            label = self._label(request, inputs)
            folder = self._store.folder(request.stage, label, fingerprint)
            self._nodes[fingerprint] = Node(request, fingerprint, label, folder, inputs, outside, {})
            self._params[fingerprint] = dict(point)
        else:
            shared = self._params[fingerprint]
            self._params[fingerprint] = {k: v for k, v in shared.items() if k in point and point[k] == v}
        return fingerprint

    def _sources(
        self, need: Need, key: str, known: Mapping[str, str], fingerprints: Sequence[Mapping[str, str]]
    ) -> list[str]:
        """Fingerprints of what fills an edge; kept checkpoints and steps of the store become nodes of their own."""
        if need.stored:
            folder = find_model(self._store, need.step, need.at, key)
            request, fingerprint = stored_request(folder, need.step if need.at is None else f"{need.step}@{need.at}")
            self._nodes.setdefault(fingerprint, Node(request, fingerprint, folder.name, folder, {}, {}, {}))
            return [fingerprint]
        sources = [p[need.step] for p in fingerprints] if need.all_items else [known[need.step]]
        return sources if need.at is None else [self._kept(self._nodes[p], need.at, key) for p in sources]

    def _kept(self, maker: Node, step: int, key: str) -> str:
        """The fingerprint of `train@50000`; the training's own where that is its end and nothing more is kept of it."""
        if check_is_kept(maker.request, step, key):
            return maker.fingerprint
        fingerprint = kept_fingerprint(maker.fingerprint, step)
        request = replace(maker.request, name=f"{maker.request.name}@{step}")
        folder, inputs = kept_folder(maker.folder, step), {INPUT: (maker.fingerprint,)}
        node = Node(request, fingerprint, maker.label, folder, inputs, {}, {}, maker.fingerprint)
        self._nodes.setdefault(fingerprint, node)
        return fingerprint

    def _with_params(self, node: Node) -> Node:
        """The values this node shares with no other value of the sweep: empty for a step all points share."""
        return replace(node, params=self._params.get(node.maker or node.fingerprint, {}))

    def _label(self, request: StepRequest, inputs: Mapping[str, Sequence[str]]) -> str:
        """Words a person would say: the components of the step, else those of what it works on."""
        words = [str(v["name"]) for v in request.config.values() if isinstance(v, Mapping) and "name" in v]
        if not words:
            words = [self._nodes[p].label for fingerprints in inputs.values() for p in fingerprints[:1]]
        text = "-".join(dict.fromkeys("-".join(words).replace("/", "-").split("-"))) or request.stage
        return text[:40].strip("-")
