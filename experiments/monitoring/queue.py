"""The state of steps in SLURM's queue; a hint only, and its absence is no error."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.monitoring import queue as queue_hint
from experiments.store.claims import JobAlive
from experiments.store.documents import Request, Submission
from experiments.store.typed_json import Block
from maskgit_core.files import read_json

_RETRY_WORDS = {
    "oom": "out of memory",
    "disk_full": "the disk is full",
    "node_fail": "node failure",
    "before": "job script failed",
    "own_error": "own error",
    "timeout": "time limit",
    "preempted": "preemption",
}

if TYPE_CHECKING:
    from launchers.cluster.queue import Queue, QueueEntry


def is_silent() -> bool:
    """True where squeue was asked about jobs and gave no answer."""
    return has_queue() and queue().known() is None


def has_queue() -> bool:
    """True where SLURM's commands are installed."""
    return shutil.which("squeue") is not None


@cache
def queue() -> Queue:
    """The queue as this process sees it, asked at most every two seconds."""
    from launchers.cluster.queue import Queue

    return Queue()


def job_alive() -> JobAlive | None:
    """Answers whether a job id is in the queue; None where there is no SLURM on this machine."""
    return queue().alive if has_queue() else None


def note_submitted(
    folder: Path, links: tuple[str, ...], *, pipeline: str, packed: bool, user: str, tasks: Sequence[str] = ()
) -> None:
    """Writes into a step's folder which jobs will run it, and which tasks make its pieces before."""
    from launchers.cluster.queue import site

    submission = Submission(
        links=links, pipeline=pipeline, packed=packed, user=user, tasks=tuple(tasks), cluster=site().cluster
    )
    submission.write(folder, durable=False)


def submitted(folder: Path) -> Submission | None:
    """The note of `note_submitted`."""
    submission = Submission.read(folder)
    return submission if submission is not None and submission.links else None


def live_entry(folder: Path) -> QueueEntry | None:
    """The queue's entry of the job that runs or will run this step; None without one, or without an answer."""
    note = submitted(folder) if has_queue() else None
    if note is None or is_foreign(note):
        return None
    for job in note.links:
        entry = queue().find(job)
        if entry is not None and entry.is_live:
            return entry
    return None


def is_foreign(note: Submission) -> bool:
    """True where its jobs are in the queue of another cluster, of which nothing is known here."""
    from launchers.cluster.queue import site

    return bool(note.cluster) and note.cluster != site().cluster


def running_tasks(folder: Path) -> str | None:
    """The progress of a step's array tasks, in words, while one of them executes; else None."""
    submission = submitted(folder)
    tasks = submission.tasks if submission else ()
    entries = [queue().find(job) for job in tasks] if has_queue() else []
    live = [entry for entry in entries if entry is not None and entry.is_live]
    running = [entry for entry in live if not entry.waits_again]
    return f"{len(running)} of {len(tasks)} tasks run, {len(tasks) - len(live)} have ended" if running else None


def queued_steps(folders: dict[str, Path]) -> dict[str, QueueEntry]:
    """fingerprint -> the queue's entry, for those of the given steps that wait or run in the queue."""
    if not has_queue():
        return {}
    notes = [note for folder in folders.values() if (note := submitted(folder)) is not None and not is_foreign(note)]
    if not notes:
        return {}
    queue().include(job for note in notes for job in (*note.links, *note.tasks))
    if queue().known() is None:
        return {}
    entries = {fingerprint: live_entry(folder) for fingerprint, folder in folders.items()}
    return {fingerprint: entry for fingerprint, entry in entries.items() if entry is not None}


def exit_note(folder: Path, store: Path) -> Block | None:
    """The note of the job that last ran this step about its end; a rank's own trouble goes first."""
    submitted = queue_hint.submitted(folder)
    request = Request.read(folder) if submitted is not None else None
    if submitted is None or request is None:
        return None
    notes: list[Block] = []
    for batch, index, position in _calls_of(store, submitted.pipeline).get(request.fingerprint, ()):
        ends = batch / "ends"
        paths = [*ends.glob(f"{index}-{position}.*json"), *ends.glob(f"{index}.script.json")]
        preempted = any(batch.glob(f"preempted-{index}-*"))
        notes += [{**note, "preempted": preempted} for p in paths if (note := read_json(p))]
    if bad := [note for note in notes if note["code"] not in (0, 75, 130, 143)]:
        # The first to break takes the others with it; a killed process is the cause of exceptions elsewhere.
        return min(bad, key=lambda note: (note["code"] >= 0, note["time"]))
    return max(notes, key=lambda note: float(note["time"]), default=None)


def _calls_of(store: Path, pipeline: str) -> dict[str, list[tuple[Path, int, int]]]:
    """Call key -> batch folder, task and place in the task, of one submission."""
    batches = sorted((store / "slurm" / pipeline).glob("[0-9]*/batch.json"))
    return _places(tuple(batches))


@lru_cache(maxsize=64)
def _places(batches: tuple[Path, ...]) -> dict[str, list[tuple[Path, int, int]]]:
    # a batch's calls never change
    places: dict[str, list[tuple[Path, int, int]]] = {}
    for batch in batches:
        for index, task in enumerate((read_json(batch) or {}).get("tasks", [])):
            for position, call in enumerate(task):
                places.setdefault(call["key"], []).append((batch.parent, index, position))
    return places


def is_final(folder: Path, store: Path) -> bool:
    """True where the job script has decided that this step's job is not run again."""
    note, request = submitted(folder), Request.read(folder)
    places = _calls_of(store, note.pipeline).get(request.fingerprint, ()) if note and request else ()
    return any(any((batch / "final").glob(f"{index}-*")) for batch, index, _ in places)


def retried(folder: Path, store: Path) -> str:
    """In words, why and how often the job of this step was run again (`launchers.cluster.job_end`); empty for never."""
    note, request = submitted(folder), Request.read(folder)
    if note is None or request is None:
        return ""
    lines: list[Block] = []
    for batch, index, _ in _calls_of(store, note.pipeline).get(request.fingerprint, ()):
        with suppress(OSError, ValueError):
            lines += [json.loads(line) for line in (batch / "retries" / f"{index}.jsonl").read_text().splitlines()]
    counts = Counter(_RETRY_WORDS.get(str(line["reason"]), "") for line in lines)
    told = [f"{word} x {count}" if count > 1 else word for word, count in counts.items() if word]
    memory = [line["changes"] for line in lines if "MinMemoryNode=" in line["changes"]]
    more = f", now with {int(memory[-1].partition('=')[2]) / 1024:.3g} GB" if memory else ""
    return f"run again after: {', '.join(told)}{more}" if told else ""
