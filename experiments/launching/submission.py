"""Submissions to a queue, exactly once whoever else submits too: the plan that knows the queue, the lock, recovery."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.monitoring import queue
from experiments.planning.graph import Graph
from experiments.planning.plan import PlannedStep, Planner
from experiments.store.claims import Claim, user_name
from experiments.store.step_folder import Store
from launchers.calls import LaunchContext
from maskgit_core.errors import LaunchError
from maskgit_core.files import write_json

_PATIENCE_S = 600.0


def plan(
    graph: Graph, redo: Collection[str] = (), *, with_queue: bool = True, reuse_old_code: bool = False
) -> list[PlannedStep]:
    """The plan as it is.

    Args:
        with_queue: steps that somebody has submitted count as queued; a launch on this machine runs them nevertheless.
        reuse_old_code: see `Planner`.
    """
    folders = {fingerprint: node.folder for fingerprint, node in graph.nodes.items()}
    queued = queue.queued_steps(folders) if with_queue else {}
    planner = Planner(graph, redo=redo, job_alive=queue.job_alive(), queued=queued, reuse_old_code=reuse_old_code)
    return planner.plan()


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
    """Finishes or undoes this user's submissions whose process was killed; call it under the lock.

    Those of other users are only mentioned: their jobs are held, and nobody else may touch them.
    """
    if not queue.has_queue():
        return
    from launchers.cluster.submission import Submission

    for path in sorted((store / "slurm").glob("*/submission.json")):
        submission = Submission(path.parent)
        if submission.state not in ("submitting", "submitted"):
            continue
        if not submission.is_mine:
            print(f"a submission of {path.owner()} ({path.parent.name}) was interrupted: its jobs are held until "
                  f"{path.owner()} calls maskgit run again", flush=True)  # fmt: skip
        else:
            print(f"an earlier submission ({path.parent.name}) was interrupted: now {submission.recover()}", flush=True)


def to_submit(planned: Sequence[PlannedStep]) -> list[PlannedStep]:
    """The steps that need a job of ours: neither done nor in the queue; a process outside it is waited for by a job."""
    return [
        step
        for step in planned
        if step.action not in ("done", "queued") and step.node.maker is None and not _runs_elsewhere(step)
    ]


def _runs_elsewhere(step: PlannedStep) -> bool:
    return step.action == "running" and queue.live_entry(step.node.folder) is not None


def _others(planned: Sequence[PlannedStep], mine: Collection[str]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Job ids of steps that are already queued or running, and which of them are packed with others."""
    links, packed = {}, set()
    for step in planned:
        note = queue.submitted(step.node.folder) if step.node.fingerprint not in mine else None
        if note is not None and step.action != "done":
            # An id that the queue has forgotten counts as ended well: never wait for it, the job looks for itself.
            live = (
                []
                if queue.is_foreign(note)
                else [j for j in note.links if (e := queue.queue().find(j)) is not None and e.is_live]
            )
            if live:
                links[step.node.fingerprint] = tuple(live)
                packed |= {step.node.fingerprint} if note.packed else set()
    return links, packed


def launch_context(
    graph: Graph, planned: Sequence[PlannedStep], chosen: Collection[str], store: Store, uid: str
) -> LaunchContext:
    """The surroundings of a launch into a queue: frozen code, jobs of others, and where job ids are noted.

    Args:
        chosen: fingerprints of the steps that this launch submits.
    """
    from experiments.store.frozen_code import freeze

    queued, packed = _others(planned, chosen)
    mine = [step for step in planned if step.node.fingerprint in chosen]
    for step in mine:
        Claim(step.node.folder, queue.job_alive()).break_dead()  # a job in a container may be unable to ask the queue
    return LaunchContext(
        folder=store.root / "slurm" / uid,
        code=freeze(store.root, graph.settings.get("plugins") or ()),
        queued=queued,
        packed=packed,
        tell=lambda line: print(line, flush=True),
        on_ids=lambda links, shared: _note(mine, links, shared, uid, store.root),
    )


def _note(
    mine: Sequence[PlannedStep],
    links: Mapping[str, tuple[str, ...]],
    shared: Collection[str],
    uid: str,
    store: Path,
) -> None:
    from experiments.launching.calls import step_key

    user = user_name()
    tasks: dict[str, list[str]] = {}
    for key, jobs in links.items():
        if (owner := step_key(key)) != key:
            tasks.setdefault(owner, []).extend(jobs)
    for step in mine:
        key = step.node.fingerprint
        queue.note_submitted(
            step.node.folder, links[key], pipeline=uid, packed=key in shared, user=user, tasks=tasks.get(key, [])
        )
    write_json(store / "slurm" / uid / "jobs.json", {key: list(jobs) for key, jobs in links.items()})
