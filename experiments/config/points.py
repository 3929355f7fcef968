"""The points of a request: one resolved config for each point of its sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from experiments.config import compose as configs
from experiments.config import sweep as sweeps
from experiments.config import toy
from experiments.config.fitted import fitted
from experiments.config.further_protocols import with_further_protocols
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError


def plan_configs(arguments: Sequence[str], config_dirs: Sequence[Path] = ()) -> tuple[list[sweeps.Point], list[Block]]:
    """The sweep's points and each one's resolved config; Hydra composes once per distinct set of group choices."""
    asked = read_points(configs.parse(arguments, config_dirs), config_dirs)
    return asked.points, asked.configs


class Points(NamedTuple):
    """The points of a request with their configs."""

    points: list[sweeps.Point]
    configs: list[Block]
    keys: list[str]  # dotted keys of values that were typed or are swept
    first_with: Callable[[str, object], Block]  # the first point's config with another value of a key


def read_points(
    asked: configs.Overrides, config_dirs: Sequence[Path], given: Sequence[sweeps.Point] | None = None
) -> Points:
    """The points of a parsed command line, or `given` ones in the place of its sweep."""
    if asked.choice("experiment") is None:
        names = ", ".join(configs.group_names("experiment", config_dirs))
        raise ConfigError(f"experiment: missing; add experiment=NAME, one of [{names}]")
    known = set(configs.groups(config_dirs))
    composed: dict[tuple[tuple[str, str], ...], Block] = {}

    def base(extra: Sequence[tuple[str, str]]) -> Block:
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
    def protocol_file(name: str) -> Block:
        return configs.read_choice("protocol", name, config_dirs)

    first = base([])
    block = first.get("sweep")
    if isinstance(block, str):
        block = sweeps.read_file(block, [configs.CONF, *config_dirs])
    points = sweeps.expand(block, asked.sweeps) if given is None else list(given)
    typed = {key: (value,) for key, value in (*asked.choices, *asked.values) if any(key in p for p in points)}
    if (
        typed and given is None
    ):  # what is typed is meant: one value of a key that is swept takes the place of its values
        points = sweeps.expand(block, [*asked.sweeps, *typed.items()])
        points = [{key: value for key, value in point.items() if key not in typed} for point in points]
    if is_toy := toy.is_asked(first):
        points = toy.fewer(points)
    resolved_base: dict[int, Block] = {}

    def config_of(point: sweeps.Point) -> Block:
        extra = [(k, str(v)) for k, v in point.items() if k.split("@")[0] in known and not isinstance(v, Mapping)]
        for key, name in extra:
            configs.check_choice(key.split("@")[0], name, config_dirs)
        start = base(extra)
        values = {k: v for k, v in point.items() if k not in dict(extra)}
        config = _resolved(start, values, resolved_base)
        if "further_protocols" in config:
            config = configs.resolve(with_further_protocols(config, protocol_file))
        if is_toy:
            return fitted(toy.small(config))
        return fitted(configs.without(config, "toy") if "toy" in config else config)

    swept = [key for key in (points[0] if points else {}) if key.split("@")[0] not in known]
    keys = [*(key for key, _ in asked.values if key != "toy"), *swept]
    return Points(points, list(map(config_of, points)), keys, lambda key, value: config_of({**points[0], key: value}))


def _resolved(start: Block, values: Options, cache: dict[int, Block]) -> Block:
    """Applies a point's values; resolves once per base where no interpolation could see them."""
    semantic = {k: v for k, v in start.items() if k not in ("paths", "launcher", "tracking", "notify")}
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
