"""The request of a search: the step that scores, the training that is scored on its way, and the graph of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.config import compose as configs
from experiments.config.checker import Checker, StepRequest
from experiments.config.points import plan_configs
from experiments.config.search import Search, Value, read_search
from experiments.config.settings import checked
from experiments.launching.calls import load_launcher
from experiments.planning.graph import Graph, Node
from experiments.planning.kept_needs import check_is_kept
from experiments.planning.parts import Part
from experiments.planning.pipeline import build
from experiments.store.typed_json import Block, Document, Options, fingerprint
from launchers.calls import LauncherProtocol
from maskgit_core.errors import ConfigError, unknown_name

TRAIN_STEPS, KEEP_EVERY, PAUSE_AT = "num_train_steps", "keep_every", "pause_at"


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Document):
    """`<store>/searches/<experiment>-<id>/search.json`: all that a worker needs to know, wherever it runs.

    Args:
        uid: of the search's execution in the store's records.
        block: the `search:` block as it was composed.
        config_dirs: folders with config groups, copied into the search's own.
        started_in: the folder that relative paths in the request mean.
        rungs: training steps at which trials are scored; the last is the end of the training.
        training: the step that is trained and paused; empty where trials run to their end.
        edges: inputs that name its checkpoints (`sample.model`).
        scored: the step whose score decides.
    """

    FILE = "search.json"
    REMEDY = "maskgit search with the same values makes it anew; what trials have made is kept"

    uid: str
    experiment: str
    overrides: tuple[str, ...]
    block: Options
    rungs: tuple[int, ...]
    training: str
    edges: tuple[str, ...]
    scored: str
    config_dirs: tuple[str, ...] = ()
    started_in: str = ""
    plugins: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    user: str = ""
    time: float = 0.0
    tracking: Options = field(default_factory=dict)

    @property
    def search(self) -> Search:
        """The checked block."""
        return read_search(self.block)


@dataclass(frozen=True)
class Asked:
    """A checked search, before anything is written.

    Args:
        ends: graph of trials at the ends of the space, scored at the last rung.
        requests: the steps of the experiment as it is.
    """

    record: SearchRecord
    search: Search
    ends: Graph
    requests: Mapping[str, StepRequest]
    launcher: LauncherProtocol

    @property
    def identity(self) -> str:
        """Equal for the same search; asking for more trials or other workers goes on with it."""
        search, record = self.search, self.record
        scored = sorted({item.steps[record.scored] for item in self.ends.items})
        kept = {"metric": search.metric, "goal": search.goal, "sampler": search.sampler, "startup": search.startup,
                "seed": search.seed, "rungs": list(record.rungs), "reduction": search.reduction, "ends": scored,
                "space": {key: repr(dimension) for key, dimension in search.space.items()}}  # fmt: skip
        return fingerprint(kept)

    @property
    def shared(self) -> list[Node]:
        """The steps that all trials share (data, tokenizer, cache), upstream first."""
        common = set.intersection(*(set(item.steps.values()) for item in self.ends.items))
        reached: set[str] = set()
        for item in self.ends.items:
            reached |= closure(self.ends, item.steps[self.record.scored])
        return [node for print_, node in self.ends.nodes.items() if print_ in common & reached]


def ask(arguments: Sequence[str], config_dirs: Sequence[Path] = ()) -> Asked:
    """Checks a search as far as can be known before it starts.

    Raises:
        ConfigError: a key of the request or of its `search:` block is wrong, or a value of the space is refused.
    """
    if swept := configs.parse(arguments, config_dirs).sweeps:
        raise ConfigError(f"{swept[0][0]}: a search has no sweep; put the values into search.space.{swept[0][0]}")
    _, (config, *_) = plan_configs(arguments, config_dirs)
    if "toy" in config:
        raise ConfigError("toy: a search has none; ask for fewer trials and shorter trainings instead")
    search, settings = read_search(config.get("search")), checked(config)
    requests = Checker(settings["plugins"], configs.groups(config_dirs)).steps(config)
    scored = _scored(search, requests)
    training, rungs = _rungs(search, requests, scored)
    edges = _edges(requests, scored, training) if len(rungs) > 1 else ()
    record = SearchRecord(
        uid="",
        experiment=str(configs.parse(arguments, config_dirs).choice("experiment")),
        overrides=tuple(arguments),
        block=config["search"],
        rungs=rungs,
        training=training,
        edges=edges,
        scored=scored,
        plugins=tuple(settings["plugins"]),
        tracking=settings["tracking"],
    )
    launcher = load_launcher(settings["launcher"])
    ends = trials_graph(record, _ends(search), config_dirs, rungs=rungs[-1:])
    asked = Asked(record, search, ends, requests, launcher)
    worker_resources(asked)
    return asked


def trials_graph(
    record: SearchRecord,
    points: Sequence[Mapping[str, Value]],
    config_dirs: Sequence[Path],
    rungs: Sequence[int] | None = None,
) -> Graph:
    """The graph of trials with these values, an item for each of them at each rung."""
    last = record.rungs[-1]
    named = [
        {**point, **dict.fromkeys(record.edges, record.training if rung == last else f"{record.training}@{rung}")}
        for point in points
        for rung in (record.rungs if rungs is None else rungs)
    ]
    return build(record.overrides, config_dirs, part=Part(until=(record.scored,)), points=named)


def closure(graph: Graph, print_: str) -> set[str]:
    """A node and all that it needs, by fingerprint."""
    reached, todo = {print_}, [print_]
    while todo:
        new = set(graph.nodes[todo.pop()].upstream) - reached
        reached |= new
        todo += new
    return reached


def _ends(search: Search) -> list[dict[str, Value]]:
    """Points that between them have both ends of every interval and every choice."""
    low = {key: dimension.ends[0] for key, dimension in search.space.items()}
    points = [low, {key: dimension.ends[-1] for key, dimension in search.space.items()}]
    points += [{**low, key: value} for key, dimension in search.space.items() for value in dimension.ends[1:]]
    return [point for i, point in enumerate(points) if point not in points[:i]]


def _scored(search: Search, requests: Mapping[str, StepRequest]) -> str:
    if search.step is not None:
        if search.step not in requests:
            raise unknown_name("search.step", search.step, requests, "step")
        return search.step
    scoring = [name for name, request in requests.items() if request.kind == "scores"]
    if "evaluate" in scoring or len(scoring) == 1:
        return "evaluate" if "evaluate" in scoring else scoring[0]
    raise ConfigError(f"search.step: missing; name the step that scores, one of [{', '.join(scoring or requests)}]")


def _rungs(search: Search, requests: Mapping[str, StepRequest], scored: str) -> tuple[str, tuple[int, ...]]:
    """The training that trials are judged on the way of, and the steps at which they are."""
    above, todo = {scored}, [scored]
    while todo:
        needs = {n.step for several in requests[todo.pop()].needs.values() for n in several if not n.stored}
        todo += needs - above
        above |= needs
    trainings = [name for name in requests if name in above and KEEP_EVERY in requests[name].config]
    if not search.prune:
        return "", (int(requests[trainings[0]].config[TRAIN_STEPS]) if len(trainings) == 1 else 0,)
    if len(trainings) != 1:
        told = f"several trainings ({', '.join(trainings)})" if trainings else "no training that keeps checkpoints"
        raise ConfigError(f"search.prune: {scored} needs {told}; set search.prune=null")
    (name,) = trainings
    last, every = int(requests[name].config[TRAIN_STEPS]), requests[name].config[KEEP_EVERY]
    for key in (TRAIN_STEPS, KEEP_EVERY):
        if f"{name}.{key}" in search.space:
            raise ConfigError(f"search.space.{name}.{key}: trials of other lengths cannot be pruned; search.prune=null")
    if every is None:
        raise ConfigError(
            f"{name}.keep_every: null, but search.prune scores kept checkpoints; set it, e.g. {max(1, last // 9)}"
        )
    at = search.at or tuple(_near(last / search.reduction**power, every) for power in (2, 1))
    rungs = sorted({step for step in at if step < last})
    for step in rungs:
        check_is_kept(requests[name], step, "search.prune.at")
    if not rungs:
        raise ConfigError(f"search.prune.at: no step before the end of {name} ({last}); give smaller ones")
    return name, (*rungs, last)


def _near(steps: float, every: int) -> int:
    return max(1, round(steps / every)) * every


def _edges(requests: Mapping[str, StepRequest], scored: str, training: str) -> tuple[str, ...]:
    found = []
    for name in _names_until(requests, scored):
        for param, needs in requests[name].needs.items():
            if any(n.step == training and n.at is None and not n.all_items for n in needs):
                found.append(f"{name}.{param}")
    if not found:
        raise ConfigError(f"search.prune: no step before {scored} takes {training} as it ends; set search.prune=null")
    return tuple(found)


def _names_until(requests: Mapping[str, StepRequest], scored: str) -> list[str]:
    chosen, _ = Part(until=(scored,)).select(requests)
    return [name for name in requests if name in chosen]


def worker_resources(asked: Asked) -> Block:
    """Resources of a worker, as `resources.<step>` has them: enough for the largest step that a trial runs.

    Raises:
        ConfigError: a step asks for several nodes.
    """
    shared = {node.request.name for node in asked.shared}
    steps = [node.request for node in asked.ends.nodes.values() if node.maker is None]
    own = [step for step in steps if step.name not in shared] or steps
    merged: Block = {"cpus_per_task": 1, "gpus_per_task": 0}
    for step in own:
        wanted = step.resources
        ranks = int(wanted.get("ranks") or 1)
        if int(wanted.get("nodes") or 1) > 1:
            raise ConfigError(f"resources.{step.name}.nodes: a search's trials each run on one machine; use 1")
        for key in ("cpus_per_task", "gpus_per_task"):
            merged[key] = max(merged[key], ranks * int(wanted.get(key) or 0))
        for key in ("mem_gb", "timeout_min"):
            values = [v for v in (merged.get(key), wanted.get(key)) if v is not None]
            merged[key] = max(values) if values else None
        for key in ("partition", "qos", "account", "constraint", "gpu_type", "retry"):
            if wanted.get(key) is not None and (step.name == asked.record.training or key not in merged):
                merged[key] = wanted[key]
    return {**merged, **asked.search.resources}
