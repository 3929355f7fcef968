"""One trial on the machine of its worker: trained to a rung, scored there, trained on."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from experiments.config.sweep import label
from experiments.launching.calls import calls
from experiments.launching.prepare import link_experiment, step_entry, write_launch, write_request
from experiments.launching.submission import plan
from experiments.launching.telling import LAST_LINES, refusal
from experiments.planning.graph import Graph, Item, store_of
from experiments.planning.plan import PlannedStep
from experiments.searching.request import PAUSE_AT, SearchRecord, closure
from experiments.store.documents import Manifest
from experiments.store.records import PipelineItem, PipelineRecord
from experiments.store.scores import named_values, read_scores
from experiments.store.step_folder import last_end
from launchers.calls import DISK_FULL, Call, LauncherProtocol, Outcome
from maskgit_core.errors import ConfigError, DiskFullError, MaskgitError

_TRIES = 6  # launches for one score: two are needed, more where another trial of the same values pauses the training


Outcomes: TypeAlias = list[tuple[Call, Outcome]]


class StoppedTrialError(Exception):
    """The worker was asked to end; what the trial has made is saved."""


class KilledStepError(Exception):
    """A signal that nobody asked for ended a step of the trial, as the kernel does where memory runs out."""


class FailedTrialError(MaskgitError):
    """A step of the trial failed by itself; the text says which and why."""


@dataclass(frozen=True)
class Trial:
    """A trial's steps.

    Args:
        graph: of `trials_graph` for its values: one item for each rung.
        launcher: runs its steps on this machine.
    """

    record: SearchRecord
    graph: Graph
    launcher: LauncherProtocol

    @property
    def training(self) -> Path | None:
        """The folder of its training; None where it has none that is paused."""
        name = self.record.training
        return self.graph.nodes[self.graph.items[0].steps[name]].folder if name else None

    def score(self, rung: int) -> float:
        """Trains to a rung and scores what is there, as far as that has not been done.

        Raises:
            FailedTrialError, StoppedTrialError, KilledStepError: see there.
            ConfigError: there is no such score. DiskFullError: there is no room.
        """
        item = self.graph.items[self.record.rungs.index(rung)]
        for _ in range(_TRIES):
            planned = [s for s in self._planned() if s.node.fingerprint in closure(self.graph, self._scored(item))]
            todo, is_training = self._next(planned, item)
            if not todo:
                return self._value(item)
            self._judge(todo, self._launch(todo, planned, rung if is_training else None), is_training)
        raise FailedTrialError(f"its training was paused {_TRIES} times before step {rung}")

    def _scored(self, item: Item) -> str:
        return item.steps[self.record.scored]

    def _planned(self) -> list[PlannedStep]:
        return plan(self.graph, with_queue=False, reuse_old_code=True)

    def _next(self, planned: list[PlannedStep], item: Item) -> tuple[list[PlannedStep], bool]:
        """The steps to run now; first those up to the training where its checkpoint is not there yet."""
        open_ = [step for step in planned if step.action != "done"]
        training = item.steps.get(self.record.training)
        if training is None:
            return open_, False
        models = [s for s in planned if s.node.maker == training or s.node.fingerprint == training]
        wanted = [s for s in models if s.node.maker == training] or models
        if all(step.action == "done" for step in wanted):
            return [s for s in open_ if s.node.fingerprint != training and s.node.maker is None], False
        until = closure(self.graph, training)
        return [step for step in open_ if step.node.fingerprint in until], True

    def _launch(self, todo: list[PlannedStep], planned: list[PlannedStep], pause_at: int | None) -> Outcomes:
        """Runs steps; the training among them ends, saved, at `pause_at`."""
        store = store_of(self.graph)
        for step in todo:
            if step.action not in ("run", "check"):
                continue  # somebody else runs it, and it is waited for
            node = step.node
            if node.request.name == self.record.training and pause_at is not None:
                execution = {**node.request.execution, PAUSE_AT: pause_at}
                node = replace(node, request=replace(node.request, execution=execution))
            write_request(node, self.graph, store)
            write_launch(node, self.graph, self.record.uid)
            (node.folder / "logs").mkdir(parents=True, exist_ok=True)
        link_experiment(self.graph, store)
        made = calls(self.graph, planned, self.record.uid, chosen={step.node.fingerprint for step in todo})
        made = [replace(call, ended="") for call in made]
        self.launcher.check(made)
        code = Path(__file__).resolve().parents[2]
        with _working_in(code):
            outcomes = self.launcher.launch(made)
        return [(call, outcomes[call.key]) for call in made]

    def _judge(self, todo: list[PlannedStep], outcomes: Outcomes, is_training: bool) -> None:
        training = {s.node.fingerprint for s in todo if is_training and s.node.request.name == self.record.training}
        for call, outcome in outcomes:
            if outcome.state == "stopped" and not (call.key in training and _is_paused(Path(call.args[0]))):
                raise StoppedTrialError
            if outcome.state != "failed":
                continue
            if outcome.exit_code < 0:
                raise KilledStepError(f"{call.name}: {outcome.message}")
            told = refusal(call, outcome) or f"{call.name} failed: {outcome.message}: {_last_line(call)}"
            if outcome.exit_code == DISK_FULL:
                raise DiskFullError(told)
            raise FailedTrialError(f"{told} (log: {call.log})")

    def _value(self, item: Item) -> float:
        folder = self.graph.nodes[self._scored(item)].folder
        values = named_values(read_scores(folder / "files", Manifest.needed(folder).headline))
        metric = self.record.search.metric
        if metric not in values:
            raise ConfigError(f"search.metric: {self.record.scored} gives no {metric}; one of [{', '.join(values)}]")
        return values[metric]


def _is_paused(folder: Path) -> bool:
    """True where a training has ended at its `pause_at`, not because it was asked to from outside."""
    end = last_end(folder)
    return end is not None and end.state == "stopped" and end.reason.startswith("paused")


def _last_line(call: Call) -> str:
    try:
        lines = [line.strip() for line in call.log.read_text(errors="replace").splitlines()[-LAST_LINES:]]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")[:200]


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Processes that are started find the code that runs here, not that of the folder in which a request was typed."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def add_to_record(store: Path, trial: Trial, rungs: Collection[int]) -> None:
    """Adds a trial's steps at these rungs to the record of the search; one at a time.

    So `status`, `compare`, tables and MLflow see it as a sweep whose points come one after another.
    """
    record = PipelineRecord.of(store, trial.record.uid)
    if record is None:
        return
    items, steps = list(record.items), dict(record.by_fingerprint)
    planned = {step.node.fingerprint: step for step in plan(trial.graph, with_queue=False, reuse_old_code=True)}
    known = {item.label for item in items}
    for rung, item in zip(trial.record.rungs, trial.graph.items, strict=True):
        if rung not in rungs or label(item.params) in known:
            continue
        reached = closure(trial.graph, item.steps[trial.record.scored])
        names = {name: print_ for name, print_ in item.steps.items() if print_ in reached}
        items.append(PipelineItem(params=item.params, label=label(item.params), steps=names))
        for print_ in (p for p in trial.graph.nodes if p in reached):
            entry = step_entry(planned[print_], store)
            steps.setdefault(print_, replace(entry, action="done" if entry.action == "done" else "run", old_code=()))
    if len(items) > len(record.items):
        replace(record, items=tuple(items), steps=tuple(steps.values())).save(store)
