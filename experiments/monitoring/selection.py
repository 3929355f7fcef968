"""Which steps `cancel` and `retry` mean, and which other pipelines still count on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.monitoring import queue
from experiments.store.find import find_steps
from experiments.store.records import PipelineStep, is_cancelled, records
from experiments.store.step_folder import Status, status
from maskgit_core.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class StepNow:
    """A step as it is at this moment."""

    name: str
    fingerprint: str
    folder: Path
    status: Status
    entry: Any  # of the queue, or None

    @property
    def is_live(self) -> bool:
        """True while it runs or waits in the queue."""
        return self.status.state == "running" or (self.status.state != "done" and self.entry is not None)

    @property
    def user(self) -> str | None:
        """Who runs it, where somebody does."""
        if self.entry is not None:
            return str(self.entry.user)
        return self.status.owner.user if self.status.owner is not None else None


def look(entry: PipelineStep, store: Path) -> StepNow:
    """Reads one step's files and asks the queue."""
    folder = store / entry.folder
    queued = queue.live_entry(folder)
    found = status(folder, queue.job_alive())
    return StepNow(entry.name, entry.fingerprint, folder, found, queued)


def select(text: str, store: Path) -> tuple[list[PipelineStep], list[str], bool]:
    """The steps that `text` names, the uids of the executions meant, and whether these are meant as a whole.

    Args:
        text: an experiment, a run's uid, `experiment/step`, `experiment/<row of status>`, a step, a fingerprint.

    Raises:
        ConfigError: nothing matches.
    """
    known = records(store)
    whole = [r for r in known if text in (r.experiment, r.uid)]
    if whole:
        entries = {step.fingerprint: step for record in reversed(whole) for step in record.steps}
        return list(entries.values()), [record.uid for record in whole], True
    head, _, tail = text.rpartition("/")
    if head and tail.isdigit():
        steps = next((r.steps for r in known if head in (r.experiment, r.uid)), None)
        if steps is None:
            raise unknown_name("experiment", head, {r.experiment for r in known}, f"run in {store} of experiment")
        if not 1 <= int(tail) <= len(steps):
            raise ConfigError(f"{text}: {head} has steps 1 to {len(steps)}, in the order of `maskgit status {head}`")
        found = [steps[int(tail) - 1]]
    else:
        found = find_steps(text, store)
    fingerprints = {step.fingerprint for step in found}
    experiments = {step.experiment or head for step in found} | ({head} if head else set())
    uids = [r.uid for r in known if r.experiment in experiments and fingerprints & set(r.by_fingerprint)]
    return found, uids, False


def needed_elsewhere(chosen: Sequence[StepNow], uids: Sequence[str], store: Path) -> dict[str, str]:
    """fingerprint -> the run that counts on it: one that is not meant here, nor cancelled, nor older than its job.

    A run that was there before a step was submitted anew lost it with the job that it had waited for; it gets hold of
    the new one by being run again.
    """
    since = {}
    for step in chosen:
        note = queue.submitted(step.folder)
        since[step.fingerprint] = note.pipeline if note is not None else ""
    found: dict[str, str] = {}
    for record in records(store):
        uid = record.uid
        if uid in uids or record.launcher in ("local", "inline") or is_cancelled(store, uid):
            continue
        for entry in record.steps:
            pipeline = since.get(entry.fingerprint)
            if pipeline and (uid == pipeline or _time(uid) > _time(pipeline)):
                found.setdefault(entry.fingerprint, f"{record.experiment} ({uid}) of {record.user}")
    return found


def _time(uid: str) -> str:
    """The part of a run's uid that says when it began."""
    return uid.rpartition("-")[0]
