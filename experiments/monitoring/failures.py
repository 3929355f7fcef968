"""Why steps failed: from their own words, from the note their job left, and from SLURM's accounting, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.monitoring import queue
from experiments.monitoring.queue import exit_note
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, PipelineStep
from experiments.store.step_folder import Status, status
from experiments.store.typed_json import Options
from maskgit_core.files import read_json

_BY_STATE = {
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "PREEMPTED": "preemption",
    "CANCELLED": "cancelled from outside",
}
#: sacct's exit code of a job whose output file could not be made, so that nothing of it ran.
_NO_LOG_FILE = "0:53"


@dataclass(frozen=True)
class Failure:
    """One step that did not end well."""

    name: str
    reason: str  # "own error", "out of memory", "node failure", "time limit", "preemption", ...
    line: str  # the last line of the traceback, or what is known instead
    node: str
    job: str
    attempt: int
    log: str
    folder: str


def failures(record: PipelineRecord, store: Path) -> list[Failure]:
    """The steps of an execution that failed or were killed and are not running again."""
    from experiments.monitoring.status import rows_of

    alive = queue.job_alive()
    broken = []
    for row in rows_of(record, store):
        folder = Path(row["folder"])
        if row["state"] not in ("failed", "killed", "stopped"):
            continue
        note = exit_note(folder, store)
        # A step that was stopped wants nothing more, unless SLURM took its job away and did not give it back.
        if row["state"] != "stopped" or (note is not None and note["preempted"]):
            broken.append((row, folder, status(folder, alive), note))
    told = _usage([job_of(folder, state, note) for _, folder, state, note in broken])
    return [_failure(entry, folder, state, note, told) for entry, folder, state, note in broken]


def failure_of(entry: PipelineStep, store: Path) -> Failure:
    """Why one step did not end well, whatever the queue says of its job."""
    folder = store / entry.folder
    found, note = status(folder, queue.job_alive()), exit_note(folder, store)
    reason = found.reason or (str(note["message"]) if note else "")
    state = found.state if found.state != "running" else "killed"
    return _failure({"name": entry.name, "state": state, "reason": reason}, folder, found, note, {})


def grouped(failed: Sequence[Failure]) -> list[tuple[tuple[str, str], list[Failure]]]:
    """Equal failures together, the most frequent first."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failed:
        groups.setdefault((failure.reason, failure.line), []).append(failure)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def job_of(folder: Path, state: Status, note: Mapping[str, object] | None) -> str:
    """The id of the job that ran a step last, or nothing."""
    if note is not None:
        return str(note["job"])
    if state.owner is not None and state.owner.job:
        return str(state.owner.job)
    submitted = queue.submitted(folder)
    return submitted.links[-1] if submitted else ""


def _usage(jobs: Sequence[str]) -> Mapping[str, object]:
    if not any(jobs) or not queue.has_queue():
        return {}
    from launchers.cluster.queue import usage

    return usage([job for job in jobs if job]) or {}


def _failure(entry: Options, folder: Path, state: Status, note: Options | None, told: Options) -> Failure:
    job = job_of(folder, state, note)
    counted = told.get(job)
    reason = _BY_STATE.get(counted.state, "") if counted is not None else ""
    if note is not None and note["preempted"] and entry["state"] == "stopped":
        reason = "preemption"
    line = _cause(folder, state, note) or entry["reason"] or "ended without a word"
    if counted is not None and counted.exit_code == _NO_LOG_FILE:
        reason, line = "job script", f"SLURM could not make the job's output file ({_NO_LOG_FILE})"
    if not reason:
        killed = (note is not None and note["code"] < 0) or (entry["state"] == "killed" and not _own_words(state))
        before = note is not None and "before the step began" in note["message"]
        reason = "job script" if before else "killed" if killed else "own error"
    tried = StepFolder(folder).attempts()
    owner = state.owner or (state.start.owner if state.start else None)
    host = owner.host if owner else ""
    logs = sorted((folder / "logs").glob("*"), key=lambda p: p.stat().st_mtime)
    return Failure(
        name=entry["name"],
        reason=reason,
        line=" ".join(line.split())[:300],
        node=(note or {}).get("node") or (counted.node if counted else "") or host,
        job=job,
        attempt=tried[-1].number if tried else 0,
        log=str(logs[-1]) if logs else "",
        folder=str(folder),
    )


def _own_words(state: Status) -> str:
    """The last line of rank 0's traceback, or its reason."""
    trace = [line for line in ((state.end and state.end.traceback) or "").splitlines() if line.strip()]
    return trace[-1] if trace else (state.reason if state.state == "failed" else "")


def _cause(folder: Path, state: Status, note: Options | None) -> str:
    """Why the step ended: of several ranks, what the first to break says; the others only lost their partner."""
    if note is None or not note["rank"]:
        return _own_words(state)
    if note["code"] < 0:
        return f"rank {note['rank']}: {note['message']}"
    end = read_json(StepFolder(folder).attempt(state.attempt).path / f"end-rank{note['rank']}.json") or {}
    trace = [line for line in str(end.get("traceback") or end.get("reason") or "").splitlines() if line.strip()]
    return f"rank {note['rank']}: {trace[-1] if trace else note['message']}"
