"""Nodes that lost jobs, as the jobs noted them in the store: `<store>/slurm/nodes/<node>/<job>-<life>`, one file each.

A job that finds itself started again looks whether its node was lost in between (`launchers.cluster.job_end`); one that
died before its step began blames the node once it has got further on another.
"""

from __future__ import annotations

import time
from pathlib import Path

from launchers.cluster.queue import call_tool
from maskgit_core.errors import LaunchError

DAY_S = 86400.0


def failing(store: Path, after: int, within_s: float = DAY_S) -> dict[str, int]:
    """Node -> jobs it lost lately, for nodes that lost `after` jobs or more; the worst first.

    Args:
        store: the store's folder.
        after: 0: none is ever named.
    """
    counts: dict[str, int] = {}
    now = time.time()
    for path in (store / "slurm" / "nodes").glob("*/*") if after else ():
        try:
            if now - path.stat().st_mtime < within_s:
                counts[path.parent.name] = counts.get(path.parent.name, 0) + 1
        except OSError:
            continue
    return dict(sorted(((n, c) for n, c in counts.items() if c >= after), key=lambda entry: -entry[1]))


def avoidable(failing_nodes: dict[str, int], partition: str | None) -> list[str]:
    """Those of the failing nodes to stay away from: at most a quarter of the partition, so that work goes on."""
    if not failing_nodes:
        return []
    command = ["sinfo", "-h", "-N", "-o", "%N", *(["-p", partition] if partition else [])]
    try:
        here = set(call_tool(command, timeout_s=30.0).stdout.split())
    except LaunchError:
        return []
    return [node for node in failing_nodes if node in here][: len(here) // 4]
