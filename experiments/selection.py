"""Which steps `cancel` and `retry` mean, and which other pipelines still count on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import queue_hint
from experiments.artifacts import Status, status
from experiments.atomic import read_json
from experiments.find import find_steps
from experiments.prepare import pipelines
from experiments.values import unknown_name
from maskgit_core.errors import ConfigError


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


def look(entry: Mapping[str, Any], store: Path) -> StepNow:
    """Reads one step's files and asks the queue."""
    folder = store / entry["folder"]
    queued = queue_hint.live_entry(folder)
    found = status(folder, queue_hint.job_alive())
    return StepNow(entry["name"], entry["fingerprint"], folder, found, queued)


def records(store: Path) -> list[dict[str, Any]]:
    """All records of executions, newest first."""
    found = (read_json(path) for path in reversed(pipelines(store)))
    return [record for record in found if record]


def select(text: str, store: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps that `text` names, and the uids of the executions meant as a whole or in part.

    Args:
        text: an experiment, a run's uid, `experiment/step`, `experiment/<row of status>`, a step, a fingerprint.

    Raises:
        ConfigError: nothing matches.
    """
    known = records(store)
    whole = [r for r in known if text in (r["experiment"], r["uid"])]
    if whole:
        entries = {step["fingerprint"]: step for record in reversed(whole) for step in record["steps"]}
        return list(entries.values()), [record["uid"] for record in whole]
    head, _, tail = text.rpartition("/")
    if head and tail.isdigit():
        steps = next((r["steps"] for r in known if head in (r["experiment"], r["uid"])), None)
        if steps is None:
            raise unknown_name("experiment", head, {r["experiment"] for r in known}, f"run in {store} of experiment")
        if not 1 <= int(tail) <= len(steps):
            raise ConfigError(f"{text}: {head} has steps 1 to {len(steps)}, in the order of `maskgit status {head}`")
        found = [steps[int(tail) - 1]]
    else:
        found = find_steps(text, store)
    prints = {step["fingerprint"] for step in found}
    experiments = {step.get("experiment") or head for step in found} | ({head} if head else set())
    uids = [
        record["uid"]
        for record in known
        if record["experiment"] in experiments and prints & {s["fingerprint"] for s in record["steps"]}
    ]
    return [dict(step) for step in found], uids


def needed_elsewhere(
    chosen: Sequence[StepNow], uids: Sequence[str], store: Path, cache: dict[str, StepNow]
) -> dict[str, str]:
    """fingerprint -> the run that still counts on it: one that is not meant, and has live steps after it."""
    prints = {step.fingerprint for step in chosen}
    found: dict[str, str] = {}
    for record in records(store):
        if record["uid"] in uids:
            continue
        shared = prints & {step["fingerprint"] for step in record["steps"]}
        if not shared:
            continue
        after: dict[str, set[str]] = {}  # step -> the shared steps it comes after
        for entry in record["steps"]:
            own = entry["fingerprint"]
            after[own] = {need for need in entry["needs"] if need in shared}.union(
                *(after.get(need, set()) for need in entry["needs"])
            )
            if not after[own] or own in prints:
                continue
            step = cache.setdefault(own, look(entry, store))
            if step.is_live:
                for need in after[own]:
                    found.setdefault(need, f"{record['experiment']} ({record['uid']}) of {record['user']}")
    return found
