"""Resources that jobs asked for and used, from one call of sacct; empty without accounting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.console import duration, table
from experiments.monitoring import queue
from experiments.store.typed_json import Options

if TYPE_CHECKING:
    from launchers.cluster.queue import Usage


def report(steps: Sequence[Options]) -> str:
    """A table of the jobs of these steps (rows of `maskgit status`) that have run; one line without accounting."""
    jobs = {}
    for step in steps:
        note = queue.submitted(Path(step["folder"]))
        if note is not None:
            jobs[step["name"]] = [*note.tasks, *note.links]
    if not jobs or not queue.has_queue():
        return "  no jobs of these steps are known here"
    from launchers.cluster.queue import usage

    told = usage([job for links in jobs.values() for job in links])
    if told is None:
        return "  the site's accounting (sacct) does not answer"
    rows = [["step", "job", "state", "time", "of", "CPU used", "memory", "of"]]
    for name, links in jobs.items():
        rows += [_row(name, told[job]) for job in links if job in told and told[job].seconds > 0]
    return table(rows)


def _row(name: str, used: Usage) -> list[str]:
    share = used.cpu_share
    return [
        name,
        used.job,
        used.state.lower(),
        duration(used.seconds),
        duration(used.limit_seconds) if used.limit_seconds else "no limit",
        f"{share:.0%} of {used.cpus} cores" if share is not None else "",
        f"{used.max_rss_mb:.0f} MB" if used.max_rss_mb else "",
        f"{used.mem_mb:.0f} MB" if used.mem_mb else "",
    ]
