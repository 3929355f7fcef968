"""Resources that jobs asked for and used, from one call of sacct; empty without accounting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.console import duration, table
from experiments.monitoring import queue
from experiments.store.documents import End, Manifest, Start
from experiments.store.paths import StepFolder
from experiments.store.typed_json import Options

if TYPE_CHECKING:
    from launchers.cluster.queue import Usage


def report(steps: Sequence[Options]) -> str:
    """Time on the machines by step name, from files; then, where sacct answers, each job's use of what it asked for."""
    return "\n".join(part for part in (hours_table(steps), _jobs(steps)) if part)


def hours_table(steps: Sequence[Options]) -> str:
    """Hours of processes and of GPUs that all attempts of these steps took, by step name, and their sum."""
    sums: dict[str, list[float]] = {}
    for step in steps:
        hours, gpu_hours = step_hours(Path(step["folder"]))
        known = sums.setdefault(str(step["name"]).partition("[")[0], [0.0, 0.0, 0.0])
        for i, value in enumerate((1.0, hours, gpu_hours)):
            known[i] += value
    rows = [["step", "items", "hours", "GPU-hours"]]
    rows += [[name, f"{count:.0f}", f"{hours:.2f}", f"{gpus:.2f}"] for name, (count, hours, gpus) in sums.items()]
    total = [sum(entry[i] for entry in sums.values()) for i in range(3)]
    rows.append(["all", f"{total[0]:.0f}", f"{total[1]:.2f}", f"{total[2]:.2f}"])
    return table(rows, ["dim"])


def step_hours(folder: Path) -> tuple[float, float]:
    """Hours and GPU-hours of all attempts of a step, those that failed too; one that just runs counts until now."""
    hours = gpu_hours = 0.0
    done = Manifest.read(folder)
    for attempt in StepFolder(folder).attempts():
        start, end = Start.read(attempt.path), End.read(attempt.path)
        if start is None:
            continue
        until = end.time if end is not None and end.time is not None else _last_sign(attempt.path, start.time)
        if done is not None and done.attempt == attempt.number:
            until = done.time
        spent = max(0.0, until - start.time) / 3600
        asked = start.resources or {}
        hours += spent
        gpu_hours += spent * int(str(asked.get("ranks") or 1)) * int(str(asked.get("gpus_per_task") or 0))
    return hours, gpu_hours


def _last_sign(attempt: Path, began: float) -> float:
    """When a process that ended without a word (or still runs) last wrote into its attempt's folder."""
    times = [began]
    for path in (attempt / "journal.jsonl", attempt / "progress.json", attempt / "notes.json"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _jobs(steps: Sequence[Options]) -> str:
    jobs = {}
    for step in steps:
        note = queue.submitted(Path(step["folder"]))
        if note is not None:
            jobs[step["name"]] = [*note.tasks, *note.links]
    if not jobs or not queue.has_queue():
        return ""
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
