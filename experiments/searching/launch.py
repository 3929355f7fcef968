"""Starts a search, or goes on with it: its folder, the calls of its workers, and what is said about it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from experiments.console import coloured
from experiments.launching.calls import calls
from experiments.launching.ending import shown
from experiments.launching.execution import Shipper, one_at_a_time
from experiments.launching.prepare import link_experiment, plugin_path, write_launch, write_request
from experiments.launching.submission import launch_context, plan
from experiments.launching.telling import Teller, Voice
from experiments.monitoring import queue
from experiments.planning.graph import store_of
from experiments.planning.plan import PlannedStep
from experiments.searching.request import Asked, SearchRecord, worker_resources
from experiments.searching.worker import CANCELLED
from experiments.store import provenance
from experiments.store.claims import Claim, Owner, user_name
from experiments.store.records import PipelineRecord, PipelineStep, new_uid
from experiments.store.step_folder import Store
from experiments.tracking.live import announce
from launchers.calls import Call, Outcome, Resources
from launchers.retry import Retry
from maskgit_core.errors import ConfigError, LaunchError
from maskgit_core.files import read_json, write_json

TARGET = "experiments.searching.worker:main"
CLEANUP = "experiments.searching.worker:clear_claims"
PROGRESS = "experiments.searching.worker:mark"
_ROUNDS = 3  # on this machine: workers that were killed are started again so often


def refuse_without_optuna() -> None:
    """Raises `ConfigError` where the optional package is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("search: needs Optuna, which is not installed; pip install 'maskgit-experiments[search]'")


def start(asked: Asked, config_dirs: Sequence[Path], voice: Voice = "normal") -> int:
    """Launches the search's workers, and before them the steps that all trials share; returns the exit code."""
    store, launcher = store_of(asked.ends), asked.launcher
    folder = folder_of(asked)
    with one_at_a_time(store) if launcher.is_detached else nullcontext():
        store.check_writable()
        record = _write(asked, folder, config_dirs)
        shared = pending_shared(asked)
        count = workers_wanted(asked, folder)
        if count == 0:
            print(f"nothing to start: {_why_none(asked, folder)}")
            return 0
        uid = new_uid()
        todo = _calls(asked, shared, folder, uid, count)
        launcher.check(todo)
        if launcher.is_detached:
            return _submit(asked, record, shared, todo, folder, uid)
    print(f"search {shown(folder)}: {_sizes(asked)}; follow it with: maskgit search {record.experiment} --status")
    announce(store.root, record.uid)
    teller = Teller({step.node.fingerprint: step.node.name for step in shared}, launcher.echoes, voice)
    outcomes: dict[str, Outcome] = {}
    for _ in range(_ROUNDS):
        with teller.shown():
            outcomes = launcher.launch(todo, on_event=teller)
        if any(o.state == "stopped" for o in outcomes.values()) or not _left(asked, folder):
            break
        if not any(o.exit_code < 0 for o in outcomes.values()):
            break
        todo = _calls(asked, pending_shared(asked), folder, uid, workers_wanted(asked, folder))
    Shipper(store.root, asked.ends).ship()
    return _code(outcomes, bool(_left(asked, folder)))


def folder_of(asked: Asked) -> Path:
    """The search's folder in its store."""
    return store_of(asked.ends).root / "searches" / f"{asked.record.experiment}-{asked.identity[:8]}".replace("/", "_")


def _left(asked: Asked, folder: Path) -> int:
    """Trials that have not ended."""
    from experiments.searching.study import Study

    known = Study(folder, asked.search, queue.job_alive()).trials()
    return asked.search.trials - sum(trial.state != "running" for trial in known)


def _code(outcomes: dict[str, Outcome], is_open: bool) -> int:
    states = [outcome.state for outcome in outcomes.values()]
    if "stopped" in states:
        print("stopped; run the same command to go on from what was saved")
        return 130
    return 1 if is_open or ("failed" in states and not is_open and "done" not in states) else 0


# -- what is written --------------------------------------------------------------------------------------------------
def _write(asked: Asked, folder: Path, config_dirs: Sequence[Path]) -> SearchRecord:
    """Makes the search's folder, or goes on with the one that is there; returns its record."""
    from experiments.searching.study import Study

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CANCELLED).unlink(missing_ok=True)
    there = SearchRecord.read(folder)
    names = tuple(f"conf/{number}" for number in range(len(config_dirs)))
    for name, source in zip(names, config_dirs, strict=True):
        if not (folder / name).exists():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    record = replace(
        asked.record,
        uid=there.uid if there else new_uid(),
        config_dirs=names,
        started_in=str(Path.cwd()),
        python_path=tuple(plugin_path(asked.record.plugins)),
        user=user_name(),
        time=there.time if there else time.time(),
    )
    record.write(folder)
    Study(folder, asked.search, queue.job_alive())
    if PipelineRecord.of(store_of(asked.ends).root, record.uid) is None:
        _execution(asked, record).save(store_of(asked.ends).root)
    return record


def _execution(asked: Asked, record: SearchRecord) -> PipelineRecord:
    """The record that makes the search an execution like any other; trials are added to it as they come."""
    owner = Owner.me()
    return PipelineRecord(
        uid=record.uid,
        experiment=record.experiment,
        description=asked.ends.description,
        overrides=record.overrides,
        command="maskgit search " + " ".join(record.overrides),
        user=owner.user,
        owner=owner,
        host=owner.host,
        time=time.time(),
        code=provenance.code_state().brief(),
        settings=asked.ends.settings,
        items=(),
        steps=tuple(
            PipelineStep(
                name=node.request.name,
                step=node.request.name,
                stage=node.request.stage,
                kind=node.request.kind,
                fingerprint=node.fingerprint,
                folder=str(node.folder.relative_to(store_of(asked.ends).root)),
                needs=tuple(node.upstream),
            )
            for node in asked.shared
        ),
    )


def pending_shared(asked: Asked) -> list[PlannedStep]:
    """The steps before all trials that are not done; their requests are written where nobody runs them."""
    wanted = {node.fingerprint for node in asked.shared if node.maker is None}
    planned = plan(asked.ends, with_queue=asked.launcher.is_detached, reuse_old_code=True)
    open_ = [step for step in planned if step.node.fingerprint in wanted and step.action != "done"]
    return [replace(step, node=replace(step.node, params={})) for step in open_]


# -- what is launched -------------------------------------------------------------------------------------------------
def workers_wanted(asked: Asked, folder: Path) -> int:
    """Workers to start: no more than there are trials left, less those that are in the queue already."""
    wanted = min(asked.search.workers, _left(asked, folder))
    return max(0, wanted - (len(live_workers(folder)) if asked.launcher.is_detached else 0))


def live_workers(folder: Path) -> list[str]:
    """Ids of the search's jobs that are in the queue."""
    noted = [read_json(path) for path in sorted(folder.glob("jobs/*.json"))]
    jobs = [str(job) for ids in noted if isinstance(ids, list) for job in ids]
    if not jobs or not queue.has_queue():
        return []
    queue.queue().include(jobs)
    if queue.queue().known() is None:
        raise LaunchError("search: squeue does not answer, so it is not known which workers live; try again later")
    return [job for job in jobs if (entry := queue.queue().find(job)) is not None and entry.is_live]


def _why_none(asked: Asked, folder: Path) -> str:
    if not _left(asked, folder):
        return f"all {asked.search.trials} trials have ended; search.trials=N asks for more"
    return f"{len(live_workers(folder))} workers are in the queue"


def _sizes(asked: Asked) -> str:
    return f"{asked.search.trials} trials, {asked.search.workers} workers"


def _calls(asked: Asked, shared: Sequence[PlannedStep], folder: Path, uid: str, count: int) -> list[Call]:
    """The calls of shared steps and of workers, which wait for them."""
    store = store_of(asked.ends)
    mine = [step for step in shared if step.action in ("run", "check")]
    for step in mine:
        write_request(step.node, asked.ends, store)
        write_launch(step.node, asked.ends, SearchRecord.needed(folder).uid)
        (step.node.folder / "logs").mkdir(parents=True, exist_ok=True)
    link_experiment(replace(asked.ends, nodes={step.node.fingerprint: step.node for step in shared}), store)
    before = calls(asked.ends, list(shared), uid, chosen={step.node.fingerprint for step in mine}, cut=True)
    needs = tuple(step.node.fingerprint for step in shared)
    wanted = {key: value for key, value in worker_resources(asked).items() if value is not None}
    wanted["retry"] = Retry.read(wanted.get("retry"), "search.resources.retry")
    inline = "inline" if asked.ends.settings["launcher"].get("name") == "inline" else "local"
    workers = [
        Call(
            key=f"{folder.name}/{uid}-{index}",
            name=f"search.{index}",
            target=TARGET,
            args=[str(folder), inline],
            log=folder / "logs" / f"{uid}-{index}.txt",
            needs=needs,
            group="search",
            resources=Resources(**wanted),
            progress=PROGRESS,
            cleanup=CLEANUP,
        )
        for index in range(1 if inline == "inline" else count)
    ]
    (folder / "logs").mkdir(exist_ok=True)
    return [replace(call, ended="") for call in before] + workers


def _submit(
    asked: Asked, record: SearchRecord, shared: list[PlannedStep], todo: list[Call], folder: Path, uid: str
) -> int:
    store: Store = store_of(asked.ends)
    keys = {call.key for call in todo}
    steps = {step.node.fingerprint for step in shared} & keys
    context = launch_context(asked.ends, shared, steps, store, uid)
    workers = [call.key for call in todo if call.group == "search"]

    def on_ids(links: Mapping[str, tuple[str, ...]], packed: Collection[str]) -> None:
        context.on_ids({key: jobs for key, jobs in links.items() if key not in workers}, packed)
        write_json(folder / "jobs" / f"{uid}.json", [job for key in workers for job in links[key]])

    outcomes = asked.launcher.launch(todo, context=replace(context, on_ids=on_ids))
    announce(store.root, record.uid)
    for call in todo:
        print(f"  {call.name}: {', '.join(outcomes[call.key].jobs)}")
    print(f"submitted {len(workers)} workers for {asked.search.trials} trials ({shown(folder)})")
    print(coloured(f"follow it with: maskgit search {record.experiment} --status", "dim"))
    return 0


def cancel(folder: Path) -> list[str]:
    """Ends a search's workers, in the queue and on this machine; they save first. Returns what was done, in lines.

    Raises:
        LaunchError: somebody else's search, or SLURM does not answer.
    """
    record = SearchRecord.needed(folder)
    if record.user not in ("", user_name()):
        raise LaunchError(f"search: {folder.name} is {record.user}'s; only they can cancel it")
    write_json(folder / CANCELLED, {"user": user_name()})
    lines, jobs = [], live_workers(folder)
    if jobs:
        from launchers.cluster.queue import call_tool

        call_tool(["scancel", *jobs])
        lines.append(f"cancelled workers {', '.join(jobs)}")
    for claim in (Claim(place, queue.job_alive()) for place in sorted(folder.glob("trials/*/"))):
        owner = claim.live_owner()
        if owner is not None and owner.job is None and owner.host == Owner.me().host:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(owner.pid, signal.SIGTERM)
            lines.append(f"asked the worker of trial {int(claim.folder.name)} ({owner.where()}) to end")
    return lines or ["no worker of it is alive; nothing to cancel"]
