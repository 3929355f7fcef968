"""The trials of a search, kept by Optuna in a journal in the search's folder; the only file that imports it.

Workers on any node append to one file, under a claim of ours as its lock: exclusive on network disks, and broken only
when its owner is proved dead. Every question is answered from what has been reported, so that a worker killed between
any two lines loses nothing: whoever takes its trial over asks again.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.search import Choice, Dimension, Interval, Search, Value
from experiments.searching import trial_log
from experiments.searching.trial_log import JOURNAL
from experiments.store.claims import Claim, JobAlive
from experiments.store.typed_json import Block

State = Literal["running", "done", "pruned", "failed"]
_NAME = "search"
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
_DIRECTIONS = {"minimize": StudyDirection.MINIMIZE, "maximize": StudyDirection.MAXIMIZE}
_TOLD: dict[State, TrialState] = {state: told for told, state in _STATES.items()}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class TrialView:
    """A trial as the journal tells it.

    Args:
        values: training step -> score there. reason: why it failed.
    """

    number: int
    state: State
    params: Mapping[str, Value]
    values: Mapping[int, float]
    reason: str = ""

    @property
    def value(self) -> float | None:
        """The score at its last step."""
        return self.values[max(self.values)] if self.values else None


class _Lock:
    """A claim in a folder of its own; what a killed writer left of a line is cut off, so that the next one is whole."""

    def __init__(self, folder: Path, job_alive: JobAlive | None) -> None:
        self._claim = Claim(folder / "lock", job_alive)
        self._journal = folder / JOURNAL
        self.last_crc = 0  # of the last line, while the lock is held

    def acquire(self) -> None:
        self._claim.folder.mkdir(parents=True, exist_ok=True)
        pause = 0.002
        while self._claim.take() is not None:
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        try:
            self.last_crc = trial_log.cut_torn_line(self._journal)
        except BaseException:
            self._claim.release()
            raise

    def release(self) -> None:
        self._claim.release()


class _Backend(BaseJournalBackend):
    """Optuna's journal in a file of lines with checksums."""

    def __init__(self, folder: Path, job_alive: JobAlive | None) -> None:
        self._path, self._lock = folder / JOURNAL, _Lock(folder, job_alive)
        self._places = [trial_log.Place()]  # of each line that has been read, and of the next

    def read_logs(self, log_number_from: int) -> Iterator[Block]:
        start = self._places[min(log_number_from, len(self._places) - 1)]
        for log, place in trial_log.read(self._path, start) if self._path.exists() else ():
            if place.lines == len(self._places):
                self._places.append(place)
            if place.lines > log_number_from:
                yield log

    def append_logs(self, logs: list[Block]) -> None:
        self._path.touch()
        self._lock.acquire()
        try:
            crc, text = self._lock.last_crc, b""
            for log in logs:
                line, crc = trial_log.encode(log, crc)
                text += line
            with open(self._path, "ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._lock.release()


class Study:
    """The trials of one search.

    Args:
        folder: the search's; its journal is made where it is missing.
        job_alive: asks the queue about a job id, where there is a queue.

    Raises:
        DamagedError: the journal is not what was written.
    """

    def __init__(self, folder: Path, search: Search, job_alive: JobAlive | None = None) -> None:
        self._search = search
        self._storage = JournalStorage(_Backend(folder, job_alive))
        if not self._storage.get_all_studies():
            with contextlib.suppress(DuplicatedStudyError):
                self._storage.create_new_study([_DIRECTIONS[search.goal]], _NAME)
        self._study = optuna.load_study(storage=self._storage, study_name=_NAME)

    def trials(self) -> list[TrialView]:
        """All trials, by number."""
        return [self._view(trial) for trial in self._frozen()]

    def ask(self) -> int:
        """Begins a trial; returns its number. One at a time: the caller holds the search's claim."""
        self._study.sampler = self._sampler(len(self._frozen()))
        return self._study.ask().number

    def params(self, number: int) -> dict[str, Value]:
        """The values of a trial by dotted key; those that a killed worker had not drawn yet are drawn now."""
        frozen = self._frozen()[number]
        if not self._search.space.keys() <= frozen.params.keys():
            self._study.sampler = self._sampler(number)
            trial = Trial(self._study, self._id(number))
            for key, dimension in self._search.space.items():
                _suggest(trial, key, dimension)
            frozen = self._frozen()[number]
        return self._decoded(frozen)

    def report(self, number: int, step: int, value: float) -> None:
        """Notes the score of a trial after `step` steps of training."""
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def falls_behind(self, number: int, step: int) -> bool:
        """True where the trial is not among the best `1 / reduction` that were scored at this step so far (ASHA)."""
        at_step = {t.number: t.intermediate_values[step] for t in self._frozen() if step in t.intermediate_values}
        mine = at_step[number]
        goes_on = max(1, len(at_step) // self._search.reduction)
        return sum(self._search.better(value, mine) for value in at_step.values()) >= goes_on

    def tell(self, number: int, state: State, value: float | None = None, reason: str = "") -> None:
        """Ends a trial; one that has ended stays as it is."""
        if reason:
            self._storage.set_trial_user_attr(self._id(number), "reason", reason)
        self._study.tell(number, value if state == "done" else None, state=_TOLD[state], skip_if_finished=True)

    def _frozen(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(_NAME)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler whose draws are a function of the seed, the trial's number and what was reported before."""
        seed = (self._search.seed * 1_000_003 + number) % 2**32
        if self._search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of these options are marked as experimental
            return optuna.samplers.TPESampler(
                n_startup_trials=self._search.startup, multivariate=True, constant_liar=True, seed=seed
            )

    def _view(self, trial: FrozenTrial) -> TrialView:
        return TrialView(
            number=trial.number,
            state=_STATES.get(trial.state, "running"),
            params=self._decoded(trial),
            values=dict(trial.intermediate_values),
            reason=str(trial.user_attrs.get("reason", "")),
        )

    def _decoded(self, trial: FrozenTrial) -> dict[str, Value]:
        space = self._search.space
        return {key: _decode(space[key], trial.params[key]) for key in space if key in trial.params}


def _suggest(trial: Trial, key: str, dimension: Dimension) -> None:
    """Draws a value; an ordered list is drawn by place, so that the sampler sees which values are neighbours."""
    if isinstance(dimension, Choice):
        if dimension.is_ordered:
            trial.suggest_int(key, 0, len(dimension.values) - 1)
        else:
            trial.suggest_categorical(key, list(dimension.values))
    elif dimension.is_whole:
        trial.suggest_int(
            key, int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    else:
        trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _decode(dimension: Dimension, drawn: Value) -> Value:
    if isinstance(dimension, Choice) and dimension.is_ordered:
        return dimension.values[int(drawn)]
    if isinstance(dimension, Interval) and not dimension.is_whole:
        return float(f"{float(drawn):.6g}")  # what people read and type again is the value itself
    return drawn
