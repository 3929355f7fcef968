"""The `search:` block of a config: what is searched, by which number, and how.

search:
  metric: fid                 # a score of the step that scores; `goal` where its direction is not known
  space:
    train.lr: {low: 1e-4, high: 1e-2, log: true}      # also {low: 2, high: 8, step: 2}
    model.num_layers: [2, 4, 8]                        # numbers are taken in their order
    sampler: [confidence, halton]                      # words and files of a group have none
  trials: 60
  prune: asha                 # null; or {name: asha, at: [500, 1500], reduction: 3}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from experiments.config.resources import step_resources
from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import Hint, Param
from experiments.store.scores import describe_metric
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, unknown_key

Number: TypeAlias = int | float
Value: TypeAlias = str | int | float | bool
_TEXT, _INT, _NONE = Hint("str"), Hint("int"), Hint("none")
_SCHEMA: dict[str, Param] = {
    "metric": Param("metric", _TEXT),
    "goal": Param("goal", Hint("union", (Hint("literal", ("minimize", "maximize")), _NONE)), None),
    "step": Param("step", Hint("union", (_TEXT, _NONE)), None),
    "sampler": Param("sampler", Hint("literal", ("tpe", "random")), "tpe"),
    "trials": Param("trials", _INT, 30, low=1, high=10_000),
    "workers": Param("workers", _INT, 4, low=1, high=1_000),
    "startup": Param("startup", _INT, 10, low=0),
    "seed": Param("seed", _INT, 0, low=0),
}
_PRUNE: dict[str, Param] = {
    "name": Param("name", Hint("literal", ("asha",)), "asha"),
    "at": Param("at", Hint("union", (Hint("list", (_INT,)), _NONE)), None, low=1),
    "reduction": Param("reduction", _INT, 3, low=2),
}
_RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones where both are whole."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @property
    def is_whole(self) -> bool:
        """True where the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for all when a request is checked."""
        return (self.low, self.high)

    def __str__(self) -> str:
        by = f", by {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{by}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of several values; numbers have an order that a sampler may use, words have none."""

    values: tuple[Value, ...]

    @property
    def is_ordered(self) -> bool:
        """True for numbers, which then stand in ascending order."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for all when a request is checked."""
        return self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Dimension: TypeAlias = Interval | Choice


@dataclass(frozen=True)
class Search:
    """A checked `search:` block.

    Args:
        metric, goal: the score that decides, as `maskgit compare` names it, and whether less of it is better.
        step: the step whose score it is; None: the only one that scores, or `evaluate`.
        space: dotted key -> its values.
        sampler, startup, seed: Optuna's TPE after `startup` random trials, or random ones.
        trials: in all; asking again for more goes on.
        workers: jobs (or processes) at once.
        prune: whether trials end early; at: training steps at which they are scored (None: a ninth and a third of the
            training); reduction: one in so many goes on.
        resources: of a worker, over those of the steps it runs.
    """

    metric: str
    goal: Literal["minimize", "maximize"]
    step: str | None
    space: Mapping[str, Dimension]
    sampler: Literal["tpe", "random"]
    trials: int
    workers: int
    startup: int
    seed: int
    prune: bool
    at: tuple[int, ...] | None
    reduction: int
    resources: Options

    def better(self, one: float, other: float) -> bool:
        """True where `one` is nearer to the goal."""
        return one < other if self.goal == "minimize" else one > other


def read_search(block: object) -> Search:
    """The `search:` block of a composed config.

    Raises:
        ConfigError: there is none, or a key of it is wrong.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(
            "search: missing; the experiment needs a block `search:` with metric and space (maskgit search --help)"
        )
    own = (*_SCHEMA, "space", "prune", "resources")
    for key in block:
        if key not in own:
            raise unknown_key(f"search.{key}", str(key), own)
    values: Block = {}
    for name, param in _SCHEMA.items():
        if name not in block and param.required:
            raise ConfigError(f"search.{name}: missing; name the score that decides, such as fid or class_accuracy")
        values[name] = coerce(param, block[name], f"search.{name}") if name in block else param.default
    values["goal"] = values["goal"] or _goal(values["metric"])
    prune = _prune(block.get("prune"))
    at = prune and prune["at"]
    return Search(
        **values,
        space=_space(block.get("space")),
        prune=prune is not None,
        at=tuple(sorted(set(at))) if at else None,
        reduction=prune["reduction"] if prune else 3,
        resources=_resources(block.get("resources")),
    )


def _goal(metric: str) -> str:
    known = describe_metric(metric.rpartition("/")[2] if "/" in metric else metric)
    if known is None or known[1] is None:
        raise ConfigError(f"search.goal: missing, as {metric} is not known here; set it to minimize or maximize")
    return "minimize" if known[1] else "maximize"


def _prune(value: object) -> Block | None:
    if value is None or value is False:
        return None
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"search.prune: found {value!r}; write asha, null or {{name: asha, at: [N, ...]}}")
    for key in value:
        if key not in _PRUNE:
            raise unknown_key(f"search.prune.{key}", str(key), _PRUNE)
    return {
        name: coerce(param, value[name], f"search.prune.{name}") if name in value else param.default
        for name, param in _PRUNE.items()
    }


def _resources(value: object) -> Options:
    if value is None:
        return {}
    checked = step_resources("search", "search", {"search": value})
    for key in ("ranks", "nodes", "pack", "num_tasks"):
        if key in checked:
            raise ConfigError(f"search.resources.{key}: belongs to steps; a worker is one process on one machine")
    return checked


def _space(value: object, key: str = "search.space") -> dict[str, Dimension]:
    """Dotted keys -> dimensions; `train.lr` may be written as one key or as nested ones."""
    space: dict[str, Dimension] = {}

    def walk(inner: object, path: str) -> None:
        where = f"{key}.{path}" if path else key
        if isinstance(inner, list):
            space[path] = _choice(inner, where)
        elif isinstance(inner, Mapping) and path and set(inner) & {"low", "high"}:
            space[path] = _interval(inner, where)
        elif isinstance(inner, Mapping) and inner:
            for name, more in inner.items():
                walk(more, f"{path}.{name}" if path else str(name))
        else:
            raise ConfigError(f"{where}: found {inner!r}; write {{low: A, high: B}} (log, step), or a list of values")

    walk(value if value is not None else {}, "")
    return space


def _choice(values: list[object], where: str) -> Choice:
    plain = [v for v in values if isinstance(v, str | int | float)]
    if len(plain) != len(values) or len(values) < 2 or len(set(map(repr, values))) != len(values):
        raise ConfigError(f"{where}: found {values!r}; give two or more different numbers, words or true and false")
    choice = Choice(tuple(plain))
    return Choice(tuple(sorted(plain, key=float))) if choice.is_ordered else choice


def _interval(block: Options, where: str) -> Interval:
    for key in block:
        if key not in _RANGE_KEYS:
            raise unknown_key(f"{where}.{key}", str(key), _RANGE_KEYS)
    numbers: dict[str, Number | None] = {}
    for name in ("low", "high", "step"):
        number = block.get(name)
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not is_number and not (name == "step" and number is None):
            raise ConfigError(f"{where}.{name}: found {number!r}; it must be a number")
        numbers[name] = number
    low, high, step, log = numbers["low"], numbers["high"], numbers["step"], block.get("log", False)
    assert low is not None and high is not None
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log: found {log!r}; it must be true or false")
    if low >= high:
        raise ConfigError(f"{where}: low {low:g} is not below high {high:g}; swap them, or set the key itself")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{where}: log needs low above 0 and no step")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"{where}.step: found {step:g}; it must be above 0 and at most high - low")
    return Interval(low, high, log, step)
