"""Steps as they are at this moment, and the pipelines that still count on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.monitoring import queue
from experiments.store.records import PipelineStep, is_cancelled, records
from experiments.store.step_folder import Status, status

if TYPE_CHECKING:
    from launchers.cluster.queue import QueueEntry


@dataclass(frozen=True)
class StepNow:
    """A step as it is at this moment."""

    name: str
    fingerprint: str
    folder: Path
    status: Status
    entry: QueueEntry | None  # of the queue

    @property
    def is_live(self) -> bool:
        """True while it runs or waits in the queue."""
        return self.status.state == "running" or (self.status.state != "done" and self.entry is not None)

    @property
    def user(self) -> str | None:
        """The user of the process or job that runs it, if any."""
        if self.entry is not None:
            return str(self.entry.user)
        return self.status.owner.user if self.status.owner is not None else None


def look(entry: PipelineStep, store: Path) -> StepNow:
    """Reads one step's files and asks the queue."""
    folder = store / entry.folder
    queued = queue.live_entry(folder)
    state = status(folder, queue.job_alive())
    return StepNow(entry.name, entry.fingerprint, folder, state, queued)


def needed_elsewhere(chosen: Sequence[StepNow], uids: Sequence[str], store: Path) -> dict[str, str]:
    """fingerprint -> the run that counts on it: one that is not meant here, nor cancelled, nor older than its job.

    A run that was there before a step was submitted anew lost it with the job that it had waited for; it gets hold of
    the new one by being run again.
    """
    since = {}
    for step in chosen:
        note = queue.submitted(step.folder)
        since[step.fingerprint] = note.pipeline if note is not None else ""
    users: dict[str, str] = {}
    for record in records(store):
        uid = record.uid
        if uid in uids or record.launcher in ("local", "inline") or is_cancelled(store, uid):
            continue
        for entry in record.steps:
            pipeline = since.get(entry.fingerprint)
            if pipeline and (uid == pipeline or _time(uid) > _time(pipeline)):
                users.setdefault(entry.fingerprint, f"{record.experiment} ({uid}) of {record.user}")
    return users


def _time(uid: str) -> str:
    """The part of a run's uid with its start time."""
    return uid.rpartition("-")[0]
