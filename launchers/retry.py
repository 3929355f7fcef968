"""Which ends of a job are mended by running it again, and how: `resources.<step>.retry`.

The defaults: out of memory comes back with twice the memory, up to three times; a time limit, a preemption and a lost
node are continued from what was saved; a full disk is waited for; an error of the step's own is final.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskgit_core.errors import ConfigError, unknown_key

KEYS = ("oom", "timeout", "node_fail", "preempted", "own_error", "disk_full")
_CHOICES = ("continue", "fail")


@dataclass(frozen=True)
class Retry:
    """The policy of one step.

    Args:
        oom_grow: memory of the next try: "x2" is twice as much, "+16" is 16 GiB more.
        oom_max: how often; 0: never.
        timeout, preempted: whether the step goes on after a time limit or a preemption.
        node_fail: whether it goes on after its node was lost, or a node let the job die before the step began.
        exclude: it then stays away from that node.
        own_error: how often an error of the step's own is tried again.
        disk_wait_min: minutes before a step that met a full disk is tried again.
        disk_max: how often; 0: never.
    """

    oom_grow: str = "x2"
    oom_max: int = 3
    timeout: bool = True
    preempted: bool = True
    node_fail: bool = True
    exclude: bool = True
    own_error: int = 0
    disk_wait_min: float = 2.0
    disk_max: int = 10

    @classmethod
    def read(cls, block: Mapping[str, Any] | None, where: str = "retry") -> Retry:
        """From `{oom: {mem_gb: x2, max: 3}, timeout: continue, node_fail: {exclude: true}, preempted: continue,
        own_error: 0, disk_full: {wait_min: 2, max: 10}}`; what is left out keeps its default.

        Raises:
            ConfigError: an unknown key or a value that is not allowed; names it.
        """
        if block is None:
            return cls()
        if not isinstance(block, Mapping):
            raise ConfigError(f"{where}: found {block!r}; it must be a mapping of [{', '.join(KEYS)}]")
        for key in block:
            if key not in KEYS:
                raise unknown_key(f"{where}.{key}", str(key), KEYS)
        given: dict[str, Any] = {}
        for key in ("timeout", "preempted"):
            if key in block:
                given[key] = _chosen(block[key], f"{where}.{key}")
        if "own_error" in block:
            given["own_error"] = _count(block["own_error"], f"{where}.own_error")
        oom = _part(block.get("oom", {}), ("mem_gb", "max"), f"{where}.oom")
        node = _part(block.get("node_fail", {}), ("exclude",), f"{where}.node_fail")
        disk = _part(block.get("disk_full", {}), ("wait_min", "max"), f"{where}.disk_full")
        given |= {"oom_max": 0} if oom is None else {}
        given |= {"node_fail": False} if node is None else {}
        given |= {"disk_max": 0} if disk is None else {}
        oom, node, disk = oom or {}, node or {}, disk or {}
        if "mem_gb" in oom:
            given["oom_grow"] = _growth(oom["mem_gb"], f"{where}.oom.mem_gb")
        if "max" in oom:
            given["oom_max"] = _count(oom["max"], f"{where}.oom.max")
        if "max" in disk:
            given["disk_max"] = _count(disk["max"], f"{where}.disk_full.max")
        if "wait_min" in disk:
            given["disk_wait_min"] = _minutes(disk["wait_min"], f"{where}.disk_full.wait_min")
        if "exclude" in node:
            if not isinstance(node["exclude"], bool):
                raise ConfigError(f"{where}.node_fail.exclude: found {node['exclude']!r}; true or false")
            given["exclude"] = node["exclude"]
        return cls(**given)


def _part(value: Any, keys: tuple[str, ...], where: str) -> Mapping[str, Any] | None:
    """A reason's own options; None where it is to be final."""
    if value == "fail" or value is None or (value == 0 and not isinstance(value, Mapping)):
        return None
    if value == "continue":
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: found {value!r}; fail, continue, or a mapping of [{', '.join(keys)}]")
    for key in value:
        if key not in keys:
            raise unknown_key(f"{where}.{key}", str(key), keys)
    return value


def _chosen(value: Any, where: str) -> bool:
    if value not in _CHOICES:
        raise ConfigError(f"{where}: found {value!r}; one of [{', '.join(_CHOICES)}]")
    return bool(value == "continue")


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value <= 100:
        raise ConfigError(f"{where}: found {value!r}; it must be a whole number from 0 to 100")
    return int(value)


def _minutes(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10_000:
        raise ConfigError(f"{where}: found {value!r}; it must be a number of minutes from 0 to 10000")
    return float(value)


def _growth(value: Any, where: str) -> str:
    text = (
        f"+{value}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    )  # YAML: +16 = 16
    match = re.fullmatch(r"([x+])(\d+(?:\.\d+)?)", text)
    if match is None or (match[1] == "x" and float(match[2]) <= 1) or float(match[2]) == 0:
        raise ConfigError(f'{where}: found {value!r}; "x2" for twice as much, "+16" for 16 GiB more')
    return text
