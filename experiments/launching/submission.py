"""Submits what a plan says is missing to a launcher that returns at once, exactly once, whoever else submits too."""

from __future__ import annotations

import getpass
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.monitoring import queue
from experiments.planning.graph import Graph
from experiments.planning.plan import PlannedStep, Planner
from experiments.store.claims import Claim
from experiments.store.step_folder import Store
from maskgit_core.errors import LaunchError
from maskgit_core.files import write_json

if TYPE_CHECKING:
    from launchers.cluster.batches import Submitted

PROGRESS = "experiments.running.advance:mark"
_PATIENCE_S = 600.0


def submit(
    graph: Graph, store: Store, launcher: Any, *, redo: Collection[str] = (), only: Collection[str] | None = None
) -> int:
    """Plans and submits under the store's submission lock; prints the plan with job ids; returns the exit code.

    Raises:
        LaunchError, ArtifactError: it cannot be done; nothing of it stays in the queue.
    """
    from experiments.launching.calls import calls, step_key
    from experiments.launching.execution import check_datasets, set_aside
    from experiments.launching.prepare import prepare
    from experiments.planning.plan_table import print_plan
    from experiments.store.frozen_code import freeze
    from experiments.store.records import new_uid
    from experiments.tracking.live import announce

    store.check_writable()
    with submission_lock(store.root):
        recover(store.root)
        planned = restricted(plan(graph, redo), only)
        missing = [s for s in planned if s.action not in ("done", "queued") and s.node.maker is None]
        mine = [s for s in missing if not _runs_elsewhere(s)]
        if not mine:
            print_plan(planned)
            print("nothing to submit: everything is done, running or queued")
            return 0
        uid = new_uid()
        mine_keys = {s.node.fingerprint for s in mine}
        todo = [c for c in calls(graph, planned, uid, cut=True) if step_key(c.key) in mine_keys]
        todo = [_with_progress(call) for call in todo]
        launcher.check(todo)
        check_datasets(planned)
        set_aside(planned)
        prepare(graph, planned, store, uid=uid)
        code = freeze(store.root, graph.settings.get("plugins") or ())
        for step in mine:
            (step.node.folder / "logs").mkdir(parents=True, exist_ok=True)
        links, packed = _others(planned, mine_keys)
        found = launcher.submit(
            todo,
            folder=store.root / "slurm" / uid,
            code=code,
            queued=links,
            packed=packed,
            on_ids=lambda ids: _note(mine, ids, uid, store.root),
        )
    announce(store.root, uid)
    _print(planned, found.links, mine_keys)
    print(f"submitted {len(mine)} steps as run {uid}; follow them with: maskgit status {graph.experiment}")
    if (graph.settings.get("tracking") or {}).get("uri") is None:
        print("their numbers reach the MLflow window whenever you call: maskgit sync (or maskgit ui)")
    return 0


def plan(graph: Graph, redo: Collection[str] = ()) -> list[PlannedStep]:
    """The plan as it is with the queue's knowledge."""
    queued = queue.queued_steps({fingerprint: node.folder for fingerprint, node in graph.nodes.items()})
    return Planner(graph, redo=redo, job_alive=queue.job_alive(), queued=queued).plan()


def restricted(planned: list[PlannedStep], only: Collection[str] | None) -> list[PlannedStep]:
    """The steps with these fingerprints and all they need; everything where `only` is None."""
    if only is None:
        return planned
    wanted = set(only)
    for step in reversed(planned):
        if step.node.fingerprint in wanted:
            wanted.update(step.node.upstream)
    return [step for step in planned if step.node.fingerprint in wanted]


@contextmanager
def submission_lock(store: Path) -> Iterator[None]:
    """One submission at a time for a store: what one has put into the queue, the next one sees.

    Raises:
        LaunchError: someone else holds it for ten minutes.
    """
    claim = Claim(store / "slurm", queue.job_alive())
    deadline = time.monotonic() + _PATIENCE_S
    told = False
    while (owner := claim.take()) is not None:
        if time.monotonic() > deadline:
            raise LaunchError(f"{claim.path}: held by {owner.where()} for minutes; remove the file if that has ended")
        if not told:
            print(f"waiting for another submission ({owner.where()})", flush=True)
            told = True
        time.sleep(0.2)
    try:
        yield
    finally:
        claim.release()


def recover(store: Path) -> None:
    """Finishes or undoes submissions whose process was killed; call it under the lock."""
    if not queue.has_queue():
        return
    from launchers.cluster.submission import Submission

    for path in sorted((store / "slurm").glob("*/submission.json")):
        submission = Submission(path.parent)
        if submission.state in ("submitting", "submitted"):
            print(f"an earlier submission ({path.parent.name}) was interrupted: now {submission.recover()}", flush=True)


def _runs_elsewhere(step: PlannedStep) -> bool:
    """True for what a job of somebody runs now; a process outside the queue is waited for by a job of ours."""
    return step.action == "running" and queue.live_entry(step.node.folder) is not None


def _others(planned: Sequence[PlannedStep], mine: Collection[str]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Job ids of steps that are already queued or running, and which of them share their job."""
    links, packed = {}, set()
    for step in planned:
        note = queue.submitted(step.node.folder) if step.node.fingerprint not in mine else None
        if note is not None and step.action != "done":
            # An id that the queue has forgotten counts as ended well: never wait for it, the job looks for itself.
            live = [j for j in note.links if (e := queue.queue().find(j)) is not None and e.is_live]
            if live:
                links[step.node.fingerprint] = tuple(live)
                packed |= {step.node.fingerprint} if note.packed else set()
    return links, packed


def _with_progress(call: Any) -> Any:
    from dataclasses import replace

    return replace(call, progress=PROGRESS)


def _note(mine: Sequence[PlannedStep], ids: Submitted, uid: str, store: Path) -> None:
    from experiments.launching.calls import step_key

    user = getpass.getuser()
    for step in mine:
        key = step.node.fingerprint
        packed = key in ids.shared
        tasks = [job for k, links in ids.links.items() if k != key and step_key(k) == key for job in links]
        queue.note_submitted(step.node.folder, ids.links[key], pipeline=uid, packed=packed, user=user, tasks=tasks)
    jobs = {key: list(links) for key, links in ids.links.items()}
    write_json(store / "slurm" / uid / "jobs.json", jobs)


def _print(planned: Sequence[PlannedStep], links: Any, mine: Collection[str]) -> None:
    from experiments.console import table

    rows = []
    for step in planned:
        key = step.node.fingerprint
        job = ",".join(links.get(key, ()))
        state = "submitted" if key in mine else step.action
        rows.append([step.node.name, state, job, step.reason])
    shown = [row for row in rows if row[1] != "done"][:60]
    print(table(shown))
    if len(shown) < len(rows):
        print(f"  ... and {len(rows) - len(shown)} more steps")
