"""Sweeps: one experiment over several values.

`key=a,b` on the command line, or a mapping (in an experiment's `sweep:` block, or a file named with `sweep=FILE`):

    grid:    {train.lr: [1e-4, 2e-4], model.depth: [6, 12]}    # every combination
    zip:     {sample.num_steps: [8, 16], sampler.temp: [1, 2]}  # side by side
    list:    [{train.lr: 1e-3, model.depth: 2}]                # explicit extra points
    exclude: [{train.lr: 2e-4, model.depth: 12}]               # points that match all given values are dropped
    seeds:   [0, 1, 2]                                         # every point with train.seed = 0, 1, 2; or {key: [...]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config.compose import MAX_POINTS
from experiments.config.file_checks import read_yaml
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, unknown_key

KEYS = ("grid", "zip", "list", "exclude", "seeds")
Point = Block


def expand(sweep: Options | None, axes: Sequence[tuple[str, tuple[object, ...]]] = ()) -> list[Point]:
    """All points of a sweep file's mapping, crossed with the command line's axes; `[{}]` without a sweep.

    Raises:
        ConfigError: an unknown key, lists of different lengths under `zip`, nothing left after `exclude`.
    """
    sweep = _mapping(sweep or {}, "sweep")
    for key in sweep:
        if key not in KEYS:
            raise unknown_key(f"sweep.{key}", str(key), KEYS)
    grid = _axes(sweep.get("grid"), "sweep.grid")
    points = _cross(grid) if grid else []
    zipped = _zip(sweep.get("zip"))
    points = [{**p, **z} for p in (points or [{}]) for z in zipped] if zipped else points
    points += [dict(_mapping(p, f"sweep.list[{i}]")) for i, p in enumerate(_list(sweep.get("list"), "sweep.list"))]
    _limit(max(len(points), 1), *(len(values) for _, values in axes))
    points = [{**p, **c} for p in (points or [{}]) for c in _cross(list(axes))]
    seeds = sweep.get("seeds")
    if seeds is not None:
        by_key = _axes(seeds if isinstance(seeds, Mapping) else {"train.seed": seeds}, "sweep.seeds")
        _limit(len(points), *(len(values) for _, values in by_key))
        points = [{**p, **s} for p in points for s in _cross(by_key)]
    excluded = [_mapping(e, f"sweep.exclude[{i}]") for i, e in enumerate(_list(sweep.get("exclude"), "sweep.exclude"))]
    kept = [p for p in points if not any(all(p.get(k, ...) == v for k, v in e.items()) for e in excluded)]
    if not kept:
        raise ConfigError("sweep.exclude: leaves no point of the sweep; remove some of it")
    for key in kept[0]:
        if key.split(".")[0] in (
            "paths",
            "launcher",
            "tracking",
            "notify",
            "plugins",
            "pipeline",
            "sweep",
            "search",
            "toy",
        ):
            raise ConfigError(f"{key}: cannot be swept; a sweep is over values of steps, run the command once for each")
    return [p for i, p in enumerate(kept) if p not in kept[:i]] if len(kept) < 2000 else kept


def _limit(*counts: int) -> None:
    if math.prod(counts) > MAX_POINTS:
        raise ConfigError(
            f"sweep: asks for {math.prod(counts):,} points, more than the limit of {MAX_POINTS:,}; give fewer"
        )


def _list(value: object, key: str) -> list[object]:
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"{key}: found {value!r}; it must be a list of mappings")
    return value or []


def _mapping(value: object, key: str) -> Options:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: found {value!r}; it must be a mapping of dotted keys to values")
    return {str(k): v for k, v in value.items()}


def _axes(value: object, key: str) -> list[tuple[str, tuple[object, ...]]]:
    axes = []
    for name, values in _mapping(value or {}, key).items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"{key}.{name}: found {values!r}; it must be a list of values")
        axes.append((name, tuple(values)))
    return axes


def _cross(axes: Sequence[tuple[str, tuple[object, ...]]]) -> list[Point]:
    _limit(*(len(values) for _, values in axes))
    names = [name for name, _ in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(v for _, v in axes))]


def _zip(value: object) -> list[Point]:
    axes = _axes(value, "sweep.zip")
    lengths = {name: len(values) for name, values in axes}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"sweep.zip: lists of different lengths {lengths}; give each key as many values")
    names = [name for name, _ in axes]
    return [dict(zip(names, values, strict=True)) for values in zip(*(v for _, v in axes), strict=True)]


def read_file(name: str, folders: Sequence[Path]) -> Options:
    """A sweep file by path, or by name in `<folder>/sweep/`."""
    candidates = [Path(name), *(f / "sweep" / f"{name}.yaml" for f in folders)]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        raise ConfigError(f"sweep: there is no file {name}; give a path, or a name in conf/sweep/")
    return _mapping(read_yaml(path) or {}, str(path))


def label(point: Options) -> str:
    """A short name for a point: last parts of its keys with their values (`lr=0.001,depth=2`)."""
    tails = [k.rsplit(".", 1)[-1] for k in point]
    parts = []
    for (key, value), tail in zip(point.items(), tails, strict=True):
        name = tail if tails.count(tail) == 1 else key
        parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return ",".join(parts)
