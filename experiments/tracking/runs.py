"""The MLflow runs there should be, derived from the files alone; no tracker is imported here.

Each execution of a pipeline is a parent run, each of its steps a nested run. A run's uid is ours: `<pipeline uid>` and
`<pipeline uid>/<step name>`. A step that this execution did not have to run is a light run: tags, params, headline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.config.settings import without_password
from experiments.store.claims import JobAlive, is_alive
from experiments.store.documents import DatasetUse, End, Manifest, Refusal, Request, Start, Submission
from experiments.store.journal import Point, started
from experiments.store.paths import AttemptFolder, StepFolder
from experiments.store.records import PipelineRecord, PipelineStep, effective_config
from experiments.store.records import pipelines as executions
from experiments.store.step_folder import Status, status
from experiments.store.typed_json import plain
from experiments.store.upkeep.repair import changed_journals
from experiments.tracking import run_facts
from experiments.tracking.params import asked_params
from experiments.tracking.run_facts import milliseconds

#: Our word for a state -> MLflow's.
RUN_STATUS = {
    "done": "FINISHED",
    "reused": "FINISHED",
    "running": "RUNNING",
    "waiting": "SCHEDULED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "killed": "KILLED",
    "cancelled": "KILLED",
    "not run": "KILLED",
}
FINAL = ("FINISHED", "FAILED", "KILLED")
#: The exit code of an attempt that saved its state and is to be continued (`experiments/running/job.py`).
CONTINUE = 75


@dataclass(frozen=True)
class Run:
    """One MLflow run: a pipeline's execution (no parent) or one of its steps."""

    uid: str
    name: str
    experiment: str
    state: str
    start_ms: int
    end_ms: int | None
    parent: str | None = None
    kind: str = ""  # of what the step makes; empty for an execution
    swept: tuple[str, ...] = ()  # keys of the sweep
    journals: tuple[Path, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    results: tuple[Point, ...] = ()  # headline and scores
    datasets: tuple[DatasetUse, ...] = ()
    uploads: tuple[tuple[Path, str], ...] = ()  # small file, its artifact folder
    texts: Mapping[str, str] = field(default_factory=dict)  # file name -> content made here
    model: Mapping[str, str] | None = None  # the checkpoint this step made
    scored_models: tuple[str, ...] = ()  # fingerprints of the checkpoints that the results are about

    @property
    def status(self) -> str:
        """MLflow's word for the state."""
        return RUN_STATUS[self.state]

    @property
    def is_final(self) -> bool:
        """True where nothing more will come, unless somebody continues it."""
        return self.status in FINAL

    def attached(self) -> list[object]:
        """Its artifacts and inputs in MLflow, besides tags, params and points."""
        uploads = [(str(path), place) for path, place in self.uploads]
        return [uploads, self.texts, plain(self.datasets), self.model, self.scored_models]

    def signature(self) -> str:
        """Changes whenever there is something new to ship."""
        sizes = [(p.parent.name, p.stat().st_size if p.exists() else 0) for p in self.journals]
        return json.dumps([self.state, self.end_ms, sizes, sorted(self.tags.items()), self.results, self.model])


def read_runs(
    store: Path,
    job_alive: JobAlive | None = None,
    pipelines: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    whole: bool = True,
) -> list[Run]:
    """Every run there should be, parents before their steps.

    Args:
        pipelines: only these executions (uids); None: all.
        steps: only these steps (names) and their parents.
        whole: look at all steps for the parent's state; without it the parent is taken to be running.
    """
    shown: list[Run] = []
    for path in executions(store):
        record = PipelineRecord.load(path) if pipelines is None or path.stem in pipelines else None
        if record is None:
            continue
        # A folder that is gone was deleted by `gc` after its time; what MLflow shows of it stays as it is.
        kept = [e for e in record.steps if StepFolder(store / e.folder).request.exists()]
        looked = [e for e in kept if whole or steps is None or e.name in steps]
        runs = [_step_run(store, record, entry, job_alive) for entry in looked]
        if runs:
            parent = _parent_run(record, runs)
            shown.append(parent if len(looked) == len(kept) else _still_running(parent))
            shown += [r for r in runs if steps is None or r.name in steps]
    return shown


def damaged_journals(runs: Sequence[Run]) -> list[str]:
    """The faults of the journals of these runs' steps, one line for each."""
    folders = sorted({path.parents[2] for run in runs for path in run.journals})
    return [problem for folder in folders for problem in changed_journals(folder)]


def _still_running(parent: Run) -> Run:
    return replace(parent, state="running", end_ms=None, tags={**parent.tags, "state": "running"})


def _parent_run(record: PipelineRecord, steps: Sequence[Run]) -> Run:
    ends = [s.end_ms for s in steps if s.end_ms is not None]
    state = _parent_state(record, [s.state for s in steps])
    return Run(
        uid=record.uid,
        name=" ".join([record.experiment, *run_facts.asked(record), record.uid[:15]]),
        experiment=record.experiment,
        state=state,
        start_ms=milliseconds(record.time),
        end_ms=max(ends, default=milliseconds(record.time)) if RUN_STATUS[state] in FINAL else None,
        tags={
            **run_facts.common_tags(record),
            "stage": "pipeline",
            "state": state,
            "mlflow.note.content": record.description,
        },
        params={"command": without_password(record.command)},
        results=run_facts.headlines(steps) if RUN_STATUS[state] in FINAL else (),
        texts={"pipeline.json": without_password(json.dumps(plain(record), indent=2, sort_keys=True, default=str))},
    )


def _parent_state(record: PipelineRecord, states: Sequence[str]) -> str:
    if any(s == "running" for s in states):
        return "running"
    if all(s in ("done", "reused") for s in states):
        return "done"
    for bad in ("failed", "killed", "cancelled", "stopped"):
        if bad in states:
            return bad
    return "killed" if "waiting" not in states or _launcher_is_dead(record) else "running"


def _launcher_is_dead(record: PipelineRecord) -> bool:
    """True where a local launch's process is proved dead: what it had not begun will not begin."""
    return record.owner is not None and record.launcher != "slurm" and is_alive(record.owner) is False


def _step_run(store: Path, record: PipelineRecord, entry: PipelineStep, job_alive: JobAlive | None) -> Run:
    folder = store / entry.folder
    tried = StepFolder(folder).attempts()
    mine = [a for a in tried if (start := Start.read(a.path)) is not None and start.pipeline == record.uid]
    known = status(folder, job_alive)
    state = _step_state(record, folder, known, tried, mine, _in_queue(folder, record, job_alive))
    request = Request.needed(folder)
    manifest = _manifest(known, mine) if state in ("done", "reused") else None
    run = Run(
        uid=f"{record.uid}/{entry.name}",
        name=entry.name,
        experiment=record.experiment,
        state=state,
        start_ms=milliseconds(record.time),
        end_ms=milliseconds(record.time) if RUN_STATUS[state] in FINAL else None,
        parent=record.uid,
        kind=entry.kind,
        swept=tuple(entry.params),
        tags=run_facts.step_tags(store, record, entry, state, len(mine), manifest, request),
        params=_params(store, record, entry, request),
        results=run_facts.results(folder, manifest),
        model=run_facts.model(folder, entry, manifest),
        scored_models=run_facts.models_upstream(record, entry) if entry.kind == "scores" else (),
    )
    if not mine:
        return run
    return replace(
        run,
        start_ms=int(started(mine[0].journal) or run.start_ms),
        end_ms=_ended(mine[-1], record) if run.is_final else None,
        journals=_journals(tried, mine),
        datasets=run_facts.datasets(store, folder, request, manifest),
        uploads=run_facts.uploads(folder, manifest),
        texts=run_facts.texts(folder, request, manifest),
    )


def _params(store: Path, record: PipelineRecord, entry: PipelineStep, request: Request) -> dict[str, str]:
    """A step's values but defaults; an evaluation also carries those of all upstream: `train.lr` beside the score."""
    if entry.kind not in ("scores", "tokenizer_scores"):
        return asked_params(entry, request)
    return effective_config(store, record, entry, asked_params)[0]


def _step_state(
    record: PipelineRecord,
    folder: Path,
    known: Status,
    tried: Sequence[AttemptFolder],
    mine: Sequence[AttemptFolder],
    queued: bool | None,
) -> str:
    if not mine:
        return _state_before_its_first_attempt(record, folder, known, queued)
    last = mine[-1]
    if last.set_aside:
        return "done"  # and set aside later
    if last != tried[-1]:
        end = End.read(last.path)
        return end.state if end else "killed"
    if known.state in ("stopped", "killed", "failed") and queued:
        return "waiting"  # preempted, out of time or lost with its node: it is in the queue again
    if known.state == "stopped" and known.end is not None and known.end.code == CONTINUE and queued is None:
        return "stopped" if _launcher_is_dead(record) else "waiting"
    return known.state


def _state_before_its_first_attempt(record: PipelineRecord, folder: Path, known: Status, queued: bool | None) -> str:
    """An attempt made by another execution, if any, is not evidence of ours."""
    if known.state == "done":
        return "reused"
    if known.state == "cancelled":
        return "cancelled"
    refusal = Refusal.read(folder)
    if refusal is not None and refusal.time >= record.time:
        return "failed"
    gone = _launcher_is_dead(record) if queued is None else not queued
    return "not run" if gone and known.state != "running" else "waiting"


def _in_queue(folder: Path, record: PipelineRecord, job_alive: JobAlive | None) -> bool | None:
    """Whether a job in the queue will run the step for this execution; None where there is no telling."""
    submission = Submission.read(folder)
    if job_alive is None or submission is None:
        return None
    alive = [job_alive(job, submission.cluster, submission.user) for job in submission.links]
    if any(alive):
        # Somebody else's job does not continue our run, but what we have not begun waits for it.
        return True if submission.pipeline == record.uid else None
    return None if None in alive else False


def _manifest(known: Status, mine: Sequence[AttemptFolder]) -> Manifest | None:
    """The mark this execution's result got, also where it was set aside since."""
    set_aside = [Manifest.read(attempt.path) for attempt in reversed(mine)]
    return next((m for m in set_aside if m is not None), known.manifest)


def _journals(tried: Sequence[AttemptFolder], mine: Sequence[AttemptFolder]) -> tuple[Path, ...]:
    """Journals of this execution's curve: its attempts and those they go on from."""
    until = tried.index(mine[-1])
    ended = [i for i, attempt in enumerate(tried[:until]) if attempt.set_aside]
    return tuple(attempt.journal for attempt in tried[ended[-1] + 1 if ended else 0 : until + 1])


def _ended(last: AttemptFolder, record: PipelineRecord) -> int:
    """When it ended (ms): its own word, else the last sign of life in its folder."""
    end = End.read(last.path)
    if end is not None and end.time is not None:
        return milliseconds(end.time)
    signs = [last.journal, last.progress, last.path / Start.FILE]
    return milliseconds(max((p.stat().st_mtime for p in signs if p.exists()), default=record.time))
