"""Compares what calls ask for with what the cluster has, before anything is queued and hours are lost."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launchers.calls import Call, Resources
from launchers.cluster.batches import Batch
from launchers.cluster.profile import Profile
from launchers.cluster.queue import call_tool
from maskgit_core.errors import LaunchError, suggestion


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike."""

    partition: str
    is_default: bool
    limit_min: float | None  # time limit of the partition; None: unlimited
    nodes: int
    cpus: int
    memory_mb: int
    gpus: tuple[tuple[str, int], ...]  # type ("" where the site names none), number in a node
    is_up: bool


def read_nodes() -> list[NodeKind]:
    """The cluster's partitions and nodes by one call of sinfo.

    Raises:
        LaunchError: there is no SLURM here, or it does not answer.
    """
    done = call_tool(["sinfo", "-h", "-e", "-o", "%P|%l|%D|%c|%m|%G|%a"])
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise LaunchError(f"sinfo: {last}; is this a login node of the cluster?")
    kinds = []
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 7:
            name, limit, nodes, cpus, memory, gres, up = fields
            kinds.append(
                NodeKind(
                    partition=name.rstrip("*"),
                    is_default=name.endswith("*"),
                    limit_min=_minutes(limit),
                    nodes=int(nodes),
                    cpus=int(cpus.rstrip("+")),
                    memory_mb=int(memory.rstrip("+")),
                    gpus=tuple(_gpus(gres)),
                    is_up=up == "up",
                )
            )
    return kinds


def _minutes(text: str) -> float | None:
    """[days-]hours:minutes:seconds or minutes:seconds, as sinfo prints limits."""
    if text in ("infinite", "UNLIMITED", "n/a"):
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = ([0] * (3 - len(parts)) + parts)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _gpus(gres: str) -> Iterable[tuple[str, int]]:
    """(type or "", number) from sinfo's list, e.g. "gpu:2080ti:4(S:0-1),gpu:1g.10gb:7,shard:8"."""
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = entry.split(":")
        if name == "gpu" and rest and rest[-1].isdigit():
            yield ":".join(rest[:-1]), int(rest[-1])


def check(launcher: Profile, calls: Iterable[Call]) -> list[str]:
    """Raises `LaunchError` for the first request that can never be met; returns what was found in order.

    sbatch itself is asked too (`--test-only`): it knows accounts, qualities of service and local rules.
    """
    from launchers.cluster.script import partition

    kinds = read_nodes()
    distinct: dict[tuple[str, Resources], Call] = {}
    for call in calls:
        distinct.setdefault((call.group, call.resources), call)
    told: dict[str, None] = {}
    for call in distinct.values():
        name = partition(launcher, call.resources)
        key = f"resources.{call.group or call.name}" if call.resources.partition else "launcher"
        usable = _usable(kinds, name, key)
        _check_call(launcher, call, usable)
        told[f"partition {name or 'of the site'}: {sum(kind.nodes for kind in usable)} nodes"] = None
    for call in distinct.values():
        _ask_sbatch(launcher, call)
    return list(told)


def _usable(kinds: list[NodeKind], partitions: str | None, key: str) -> list[NodeKind]:
    """The nodes of these partitions (comma-separated), or of the site's default."""
    names = list(dict.fromkeys(kind.partition for kind in kinds))
    wanted = partitions.split(",") if partitions else [k.partition for k in kinds if k.is_default]
    if not wanted:
        return kinds  # no default: the site may choose by rules of its own, which sbatch is asked about
    for name in wanted:
        if name not in names:
            raise LaunchError(
                f"{key}.partition: {name} is no partition here; {suggestion(name, names)}one of [{', '.join(names)}]"
            )
    usable = [kind for kind in kinds if kind.partition in wanted]
    if not any(kind.is_up for kind in usable):
        raise LaunchError(f"{key}.partition: {', '.join(wanted)} is down; choose another of [{', '.join(names)}]")
    return usable


def _check_call(launcher: Profile, call: Call, usable: list[NodeKind]) -> None:
    from launchers.cluster.script import time_limit

    wanted, step = call.resources, call.group or call.name
    per_node = wanted.ranks // wanted.nodes
    where = f"partition {usable[0].partition}" if usable else "the cluster"
    minutes = time_limit(launcher, wanted)
    limits = [kind.limit_min for kind in usable]
    if minutes is not None and limits and None not in limits and minutes > max(x for x in limits if x is not None):
        most = max(x for x in limits if x is not None)
        raise LaunchError(
            f"resources.{step}.timeout_min: {minutes:g} minutes asked for, {where} allows {most:g}; "
            "lower it (a step that runs out of time is continued) or choose another launcher.partition"
        )
    if wanted.gpus:
        _check_gpus(launcher, step, wanted, usable, where)
    cores = per_node * wanted.cpus_per_task
    if usable and cores > max(kind.cpus for kind in usable):
        raise LaunchError(
            f"resources.{step}.cpus_per_task: {cores} cores asked for on a node, the largest in {where} has "
            f"{max(kind.cpus for kind in usable)}; lower cpus_per_task or use more nodes"
        )
    gigabytes = wanted.mem_gb if wanted.mem_gb is not None else launcher.mem_gb
    if usable and gigabytes is not None and gigabytes * 1024 > max(kind.memory_mb for kind in usable):
        most_gb = max(kind.memory_mb for kind in usable) / 1024
        raise LaunchError(
            f"resources.{step}.mem_gb: {gigabytes:g} asked for, the largest node in {where} has {most_gb:.4g}; lower it"
        )
    if usable and wanted.nodes > sum(kind.nodes for kind in usable):
        raise LaunchError(
            f"resources.{step}.nodes: {wanted.nodes} asked for, {where} has {sum(k.nodes for k in usable)}; lower it"
        )


def _check_gpus(launcher: Profile, step: str, wanted: Resources, usable: list[NodeKind], where: str) -> None:
    per_node = wanted.gpus // wanted.nodes
    offered = [(kind, name, count) for kind in usable for name, count in kind.gpus]
    types = sorted({name for _, name, _ in offered if name})
    if gpu_type := wanted.gpu_type or launcher.gpu_type:
        offered = [entry for entry in offered if entry[1] == gpu_type]
        if not offered:
            key = f"resources.{step}.gpu_type" if wanted.gpu_type else "launcher.gpu_type"
            raise LaunchError(f"{key}: no node in {where} has {gpu_type} GPUs; one of [{', '.join(types)}]")
    if not offered:
        raise LaunchError(
            f"resources.{step}.gpus_per_task: {where} has no GPUs; choose another launcher.partition, or 0"
        )
    most = max(count for _, _, count in offered)
    if per_node > most:
        raise LaunchError(
            f"resources.{step}.gpus_per_task: {per_node} GPUs asked for on a node, {where} has at most {most}; "
            "lower ranks or gpus_per_task, or use more nodes"
        )


def start_estimate(launcher: Profile, call: Call) -> str:
    """When SLURM would start this call if it were submitted now, in words; empty where it does not say."""
    try:
        told = _test_only(launcher, call).stderr
    except LaunchError:
        return ""
    match = re.search(
        r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d) using .*?(?:in partition (\S+))?$", told, re.MULTILINE
    )
    if match is None:
        return ""
    wait_s = (datetime.fromisoformat(match[1]) - datetime.now()).total_seconds()
    where = f" in partition {match[2]}" if match[2] else ""
    return ("at once" if wait_s < 60 else f"in {wait_s / 3600:.1f} h, at {match[1].replace('T', ' ')}") + where


def _test_only(launcher: Profile, call: Call) -> subprocess.CompletedProcess[str]:
    from launchers.cluster.script import script

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        batch = Batch(0, call.group, call.resources, ((call,),))
        path.write_text(script(launcher, batch, Path(folder), call.name, Path(os.sep)))
        return call_tool(["sbatch", "--test-only", str(path)])


def _ask_sbatch(launcher: Profile, call: Call) -> None:
    done = _test_only(launcher, call)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        told = re.sub(r"^(sbatch: )?(error|allocation failure): ", "", lines[-1].strip()) if lines else "no answer"
        raise LaunchError(
            f"resources.{call.group or call.name}: SLURM refuses this job ({told}); see launcher.* and resources"
        )
