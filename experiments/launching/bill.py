"""The bill of a plan on a cluster: arrays, what they wait for, resources, and GPU-hours from earlier runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.console import duration, table
from experiments.launching.calls import calls, step_key
from experiments.monitoring import queue
from experiments.planning.graph import Graph, store_of
from experiments.planning.plan import PlannedStep
from experiments.store.documents import End, Manifest, Start
from experiments.store.paths import StepFolder
from experiments.store.step_folder import Store
from launchers.calls import LauncherProtocol, Resources
from launchers.cluster.batches import Batch, make_batches
from maskgit_core.errors import LaunchError

_HEAD = ["job", "step", "tasks", "after", "each", "limit", "time each", "GPU-hours"]
_LOOKED_AT = 20  # newest finished steps of a stage


def batches_of(graph: Graph, planned: Sequence[PlannedStep]) -> list[Batch]:
    """The jobs and arrays that `maskgit run` would submit now."""
    chosen = {s.node.fingerprint for s in planned if s.action in ("run", "check") and s.node.maker is None}
    return make_batches(calls(graph, planned, "plan", chosen=chosen, cut=True), 1_000_000)


def bill(graph: Graph, planned: Sequence[PlannedStep]) -> list[str]:
    """One row per job or array, and the sum of GPU-hours with the steps it leaves out."""
    batches = batches_of(graph, planned)
    if not batches:
        return []
    stages = {step.node.fingerprint: step.node.request.stage for step in planned}
    number_of = {call.key: batch.number for batch in batches for task in batch.tasks for call in task}
    rows, total, unknown = [_HEAD], 0.0, []
    for batch in batches:
        members = [call for task in batch.tasks for call in task]
        after = {number_of[need] for call in members for need in (*call.needs, *call.after) if need in number_of}
        seconds, hours = earlier(store_of(graph), stages[step_key(members[0].key)])
        if members[0].key != step_key(members[0].key):  # independent tasks: their step's own row has the bill
            seconds = hours = None
        elif batch.resources.gpus and hours is None:
            unknown.append(batch.group)
        total += (hours or 0.0) * len(members)
        limit = batch.resources.timeout_min
        rows.append(
            [
                str(batch.number),
                batch.group,
                str(len(batch.tasks)),
                ", ".join(map(str, sorted(after))),
                _words(batch.resources),
                duration(60 * limit) if limit else "",
                "unknown" if seconds is None else duration(seconds),
                "unknown" if hours is None else f"{hours * len(members):.2f}",
            ]
        )
    more = f", without {', '.join(dict.fromkeys(unknown))} (never run here)" if unknown else ""
    hints = list(dict.fromkeys(hint for batch in batches if (hint := suggestion(store_of(graph), batch, stages))))
    return [table(rows, ["dim"]), *hints, f"about {total:.2f} GPU-hours, by earlier runs of the same stages{more}"]


def scripts(graph: Graph, planned: Sequence[PlannedStep], launcher: LauncherProtocol) -> list[str]:
    """The job scripts that `maskgit run` would submit, but for what is known only then (ids, frozen code)."""
    from launchers.cluster.script import script
    from launchers.slurm import Launcher

    if not isinstance(launcher, Launcher):
        raise LaunchError("--sbatch: only launcher=slurm has job scripts; add launcher=slurm")
    store = store_of(graph).root
    return [
        script(launcher, batch, store / "slurm" / "UID" / f"{batch.number:03d}", batch.group, store / "code" / "DIGEST")
        for batch in batches_of(graph, planned)
    ]


def earlier(store: Store, stage: str) -> tuple[float | None, float | None]:
    """Mean seconds and mean GPU-hours of the newest finished steps of a stage; None where there are none."""
    manifests = sorted((store.root / stage).glob(f"*/{Manifest.FILE}"), key=lambda p: p.stat().st_mtime, reverse=True)
    times = []
    for path in manifests[:_LOOKED_AT]:
        manifest = Manifest.read(path.parent)
        if manifest is not None and manifest.adopted_from is None:
            times.append((manifest.seconds, manifest.seconds / 3600 * _gpus(path.parent, manifest.attempt)))
    if not times:
        return None, None
    return sum(seconds for seconds, _ in times) / len(times), sum(hours for _, hours in times) / len(times)


def suggestion(store: Store, batch: Batch, stages: Mapping[str, str]) -> str:
    """Memory and time that would do for a batch, where earlier steps of its stage used far less than it asks for.

    Their peak of memory with half as much again (rank 0's, or SLURM's MaxRSS of a rank where that is more, times the
    ranks of a node), and twice their longest time.
    """
    wanted, stage = batch.resources, stages[step_key(batch.tasks[0][0].key)]
    used = [entry for entry in _used(store, stage) if entry[2] == wanted.ranks]
    peaks = [gigabytes for gigabytes, _, _ in used if gigabytes is not None]
    told = []
    if peaks and wanted.mem_gb is not None:
        enough = max(1, math.ceil(1.5 * max(peaks) * wanted.ranks / wanted.nodes))
        if not enough <= wanted.mem_gb <= 2 * enough:
            told.append(f"mem_gb: {enough} (asked: {wanted.mem_gb:g}, used: {max(peaks) * wanted.ranks:.2g})")
    if used and wanted.timeout_min is not None:
        longest = max(seconds for _, seconds, _ in used) / 60
        minutes = max(5, math.ceil(2 * longest))
        if not minutes <= wanted.timeout_min <= 4 * minutes:
            told.append(f"timeout_min: {minutes} (asked: {wanted.timeout_min:g}, used: {longest:.2g})")
    known = f"{len(used)} earlier step{'s' * (len(used) > 1)} of stage {stage}"
    return f"resources.{batch.group}: by {known}, {', '.join(told)}" if told else ""


def _used(store: Store, stage: str) -> list[tuple[float | None, float, int]]:
    """Peak memory of a rank in GB, seconds and ranks of the newest finished steps of a stage."""
    manifests = sorted((store.root / stage).glob(f"*/{Manifest.FILE}"), key=lambda p: p.stat().st_mtime, reverse=True)
    attempts = []
    rss = _max_rss([path.parent for path in manifests[:_LOOKED_AT]])
    for path in manifests[:_LOOKED_AT]:
        manifest = Manifest.read(path.parent)
        if manifest is None or manifest.adopted_from is not None:
            continue
        attempt = StepFolder(path.parent).attempt(manifest.attempt).path
        start, end = Start.read(attempt), End.read(attempt)
        ranks = int(str(((start.resources if start else None) or {}).get("ranks") or 1))
        peaks = [p for p in (end.peak_memory_gb if end else None, rss.get(path.parent)) if p is not None]
        attempts.append((max(peaks, default=None), manifest.seconds, ranks))
    return attempts


def _max_rss(folders: Sequence[Path]) -> dict[Path, float]:
    """MaxRSS of a rank in GB of the jobs that made these steps, where the site's accounting knows it."""
    notes = {folder: note for folder in folders if (note := queue.submitted(folder)) and not note.packed}
    if not notes or not queue.has_queue():
        return {}
    from launchers.cluster.queue import usage

    told = usage([job for note in notes.values() for job in note.links]) or {}
    known = {folder: [told[job].max_rss_mb for job in note.links if job in told] for folder, note in notes.items()}
    return {
        folder: max(sizes) * 1024**2 / 1e9
        for folder, found in known.items()
        if (sizes := [size for size in found if size is not None])
    }


def queue_estimate(graph: Graph, planned: Sequence[PlannedStep], launcher: LauncherProtocol) -> list[str]:
    """When SLURM says that the first jobs would start (`sbatch --test-only`); nothing where it does not say."""
    from launchers.cluster.checks import start_estimate
    from launchers.slurm import Launcher

    if not isinstance(launcher, Launcher):
        return []
    firsts = [
        batch for batch in batches_of(graph, planned) if not any(c.needs or c.after for t in batch.tasks for c in t)
    ]
    told = [(batch.group, start_estimate(launcher, batch.tasks[0][0])) for batch in firsts[:3]]
    return [f"{group}: the queue would start it {estimate}" for group, estimate in told if estimate]


def _gpus(folder: Path, attempt: int) -> int:
    start = Start.read(StepFolder(folder).attempt(attempt).path)
    asked = (start.resources if start else None) or {}
    return int(str(asked.get("ranks") or 1)) * int(str(asked.get("gpus_per_task") or 0))


def _words(wanted: Resources) -> str:
    nodes = f"{wanted.nodes} nodes, " if wanted.nodes > 1 else ""
    gpus = f", {wanted.gpus} GPUs" if wanted.gpus else ""
    memory = f", {wanted.mem_gb:g} GB" if wanted.mem_gb is not None else ""
    return f"{nodes}{wanted.cores} cores{gpus}{memory}"
