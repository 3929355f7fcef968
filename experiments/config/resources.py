"""Resources of a step while it runs; never part of its identity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from experiments.config.compose import CONF
from experiments.store.typed_json import Block, Options
from launchers.retry import Retry
from maskgit_core.errors import ConfigError, unknown_key


@cache
def stage_defaults(stage: str) -> Block:
    """Default resources of a stage (`conf/stage/<stage>.yaml`)."""
    import yaml

    path = Path(CONF, "stage", f"{stage}.yaml")
    file = yaml.safe_load(path.read_text()) if path.is_file() else None
    return dict((file or {}).get("resources") or {})


PLACE_KEYS = ("partition", "qos", "account", "constraint", "gpu_type")
RESOURCE_KEYS = (
    *("ranks", "nodes", "cpus_per_task", "gpus_per_task", "mem_gb", "timeout_min", "pack", "num_tasks"),
    *PLACE_KEYS,
    "retry",
)


def step_resources(name: str, stage: str, asked: Options, piecewise: bool = False) -> Block:
    """The stage's defaults, under `resources.<stage>`, under `resources.<step>`; refuses unknown keys.

    Args:
        piecewise: the stage shares out pieces and its processes never talk, so it may be cut into `num_tasks` tasks.
    """
    merged = dict(stage_defaults(stage))
    for key in dict.fromkeys((stage, name)):
        block = asked.get(key) or {}
        if not isinstance(block, Mapping):
            raise ConfigError(f"resources.{key}: found {block!r}; it must be a mapping of [{', '.join(RESOURCE_KEYS)}]")
        for inner, value in block.items():
            if inner not in RESOURCE_KEYS:
                raise unknown_key(f"resources.{key}.{inner}", str(inner), RESOURCE_KEYS)
            if inner == "retry":
                merged[inner] = _retry(merged.get(inner), value, f"resources.{key}.retry")
                continue
            if inner in PLACE_KEYS:
                merged[inner] = None if value is None else str(value)  # a GPU's type may look like a number: 3090
                continue
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9
            ):
                raise ConfigError(
                    f"resources.{key}.{inner}: found {value!r}; it must be a number >= 0 and below 1e9, or null"
                )
            if inner == "num_tasks" and value not in (None, 0, 1) and not piecewise:
                raise ConfigError(
                    f"resources.{key}.num_tasks: found {value}; {stage} cannot be cut into independent tasks, "
                    "use ranks for processes that work together"
                )
            merged[inner] = value
    return merged


def _retry(known: Any, block: Any, where: str) -> Block | None:
    """A checked `retry` block; what it leaves out is kept from the stage's."""
    Retry.read(block, where)
    return {**(known or {}), **block} if block is not None else None
