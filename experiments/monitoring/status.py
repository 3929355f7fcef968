"""The rows of `maskgit status`, from files and one question to the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.store.records import PipelineRecord, PipelineStep
from experiments.store.typed_json import Block, DamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from experiments.store.claims import JobAlive
    from launchers.cluster.queue import QueueEntry


def rows_of(record: PipelineRecord, store: Path) -> list[Block]:
    """Every step of an execution with its state as it is now."""
    from experiments.monitoring.queue import job_alive, queued_steps

    queued = queued_steps({entry.fingerprint: store / entry.folder for entry in record.steps})
    alive = job_alive()
    states: dict[str, str] = {}
    rows = []
    for entry in record.steps:
        try:
            row = row_of(entry, store, alive, queued, states)
        except DamagedError as error:
            row = _damaged_row(entry, store, error)
        states[entry.fingerprint] = row["state"]
        rows.append(row)
    return rows


def _damaged_row(entry: PipelineStep, store: Path, error: DamagedError) -> Block:
    """A step of which nothing can be told, so that the others are shown all the same."""
    unknown = dict.fromkeys(("job", "owner", "seconds", "headline", "progress"))
    name = f"{error.path.name} is damaged ({error.problem}); maskgit run repairs it or runs the step again"
    return {"name": entry.name, "stage": entry.stage, "state": "damaged", "attempt": 0, "reason": name, **unknown,
            "folder": str(store / entry.folder), "fingerprint": entry.fingerprint,
            "params": entry.params}  # fmt: skip


def row_of(
    entry: PipelineStep, store: Path, alive: JobAlive | None, queued: Mapping[str, QueueEntry], states: dict[str, str]
) -> Block:
    """One step's state: from its files first, then the queue, then what it waits for."""
    from experiments.monitoring.queue import retried, running_tasks
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import status
    from experiments.store.typed_json import plain
    from maskgit_core.files import read_json

    folder = store / entry.folder
    step = status(folder, alive, brief=True)
    state, job = str(step.state), step.owner.job if step.owner else None
    reason = step.reason
    waiting = queued.get(entry.fingerprint)
    if waiting is not None and (state not in ("done", "running") or (state == "running" and waiting.waits_again)):
        job, reason, state = waiting.job, waiting.reason, "queued"
        if (told := running_tasks(folder)) is not None:
            reason, state = told, "running"
        elif again := retried(folder, store):
            reason = again
    blockers = [n for n in entry.needs if states.get(n) in ("failed", "killed", "cancelled", "blocked", "stopped")]
    if state in ("waiting", "absent"):
        state = "blocked" if blockers else "waiting"
        reason = "something it needs did not finish" if blockers else reason
    if state == "killed" or (state == "waiting" and waiting is None):
        state, reason, job = ended_outside(folder, store, state, reason, job)
    manifest = step.manifest
    seconds = manifest.seconds if manifest else None
    if state == "running" and step.start is not None:
        seconds = time.time() - step.start.time
    progress = read_json(StepFolder(folder).attempt(step.attempt).progress) if state == "running" else None
    return {
        "name": entry.name,
        "stage": entry.stage,
        "state": state,
        "job": job,
        "owner": step.owner.where() if step.owner and state == "running" else None,
        "attempt": step.attempt,
        "seconds": seconds,
        "headline": plain(manifest.headline) if manifest else None,
        "reason": reason if state != "done" else "",
        "progress": progress,
        "folder": str(folder),
        "fingerprint": entry.fingerprint,
        "params": entry.params,
    }


def ended_outside(folder: Path, store: Path, state: str, reason: str, job: str | None) -> tuple[str, str, str | None]:
    """State, reason and job of a step that left the queue without a note of its own."""
    from experiments.monitoring import queue
    from experiments.monitoring.queue import exit_note
    from experiments.store.documents import Refusal

    submitted = queue.submitted(folder)
    note = exit_note(folder, store) if submitted is not None else None
    if note is not None and note["code"] not in (0, 75):
        refusal = Refusal.read(folder)
        told = refusal.reason if refusal and state == "waiting" else note["message"]
        if state == "waiting" and note["code"] in (130, 143):
            return "stopped", "asked to end before it began", str(note["job"])
        return ("failed" if state == "waiting" else state), str(told), str(note["job"])
    if submitted is not None and state == "waiting" and queue.has_queue() and not queue.is_silent():
        gone = submitted.links[-1]
        return "killed", f"job {gone} left the queue before the step began; see slurm/{submitted.pipeline}", gone
    return state, reason, job
