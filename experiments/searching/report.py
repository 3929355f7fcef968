"""The state of a search: its plan before it starts, and its trials afterwards."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.config.search import Search
from experiments.console import number, table
from experiments.monitoring import queue
from experiments.planning.plan import PlannedStep
from experiments.searching.request import Asked, SearchRecord
from experiments.searching.study import Study, TrialView
from experiments.searching.trial_log import JOURNAL
from experiments.store.claims import Claim
from experiments.store.typed_json import DamagedError
from maskgit_core.errors import ConfigError, unknown_name

_SHOWN = 20


def plan_lines(asked: Asked, shared: Sequence[PlannedStep]) -> list[str]:
    """The search before it starts: space, rungs, training steps at most, and what is made first."""
    search, record = asked.search, asked.record
    better = "less" if search.goal == "minimize" else "more"
    told = f"{search.trials} trials by {search.sampler}, {search.workers} workers"
    lines = [f"{told}; {record.scored}: {search.metric}, {better} is better"]
    lines += [f"  {key}: {dimension}" for key, dimension in search.space.items()]
    last = record.rungs[-1]
    if len(record.rungs) > 1:
        early = ", ".join(f"{record.training}@{rung}" for rung in record.rungs[:-1])
        lines.append(f"pruned at {early}: one in {search.reduction} goes on")
        expected, alive, before = 0.0, float(search.trials), 0
        for rung in record.rungs:
            expected += alive * (rung - before)
            alive, before = max(1.0, alive / search.reduction), rung
        share = expected / (search.trials * last)
        lines.append(f"about {expected:,.0f} training steps, {share:.0%} of {search.trials} whole trainings; "
                     "trials with the same values share theirs")  # fmt: skip
    if shared:
        lines.append("before them, once: " + ", ".join(f"{s.node.request.name} ({s.reason})" for s in shared))
    return lines


def search_of(store: Path, uid: str) -> Path | None:
    """The folder of the search whose execution has this uid, if it is one's."""
    for path in (store / "searches").glob(f"*/{SearchRecord.FILE}"):
        record = SearchRecord.read(path.parent)
        if record is not None and record.uid == uid:
            return path.parent
    return None


def find(store: Path, name: str | None) -> list[Path]:
    """Folders of searches of an experiment (or of the one with this folder's name), the newest last.

    Raises:
        ConfigError: there is none.
    """
    known = sorted((store / "searches").glob(f"*/{SearchRecord.FILE}"), key=lambda path: path.stat().st_mtime)
    folders = [path.parent for path in known]
    chosen = folders if name is None else [f for f in folders if name in (f.name, _experiment(f))]
    if not chosen:
        names = [_experiment(f) for f in folders]
        if name is None or not names:
            raise ConfigError(f"search: none was started in {store}; maskgit search --help shows how")
        raise unknown_name("search", name, names, "search")
    return chosen


def _experiment(folder: Path) -> str:
    """The experiment of a search; as its folder has it where its record is damaged."""
    try:
        return SearchRecord.needed(folder).experiment
    except DamagedError:
        return folder.name.rpartition("-")[0]


def status_lines(folder: Path, every: bool = False) -> list[str]:
    """A search's trials, the best first, and how many there are of each state."""
    record = SearchRecord.needed(folder)
    search, trials = record.search, trials_of(folder)
    counts = Counter(trial.state for trial in trials)
    waiting = search.trials - len(trials)
    told = [f"{counts[state]} {state}" for state in ("done", "pruned", "running", "failed") if counts[state]]
    told += [f"{waiting} to come"] if waiting > 0 else []
    lines = [f"{record.experiment}: search {folder.name}, {search.trials} trials: {', '.join(told)}"]
    ordered = sorted(trials, key=lambda t: (_rank(t, search), t.number))
    head = ["trial", "state", "steps", search.metric, *search.space, "where or why"]
    rows = [[str(t.number), t.state, str(max(t.values, default=0)), "" if t.value is None else number(t.value),
             *(_shown(t.params.get(key)) for key in search.space), t.reason[:80] or _where(folder, t)]
            for t in (ordered if every else ordered[:_SHOWN])]  # fmt: skip
    lines.append(table([head, *rows], ["dim"]))
    if len(ordered) > _SHOWN and not every:
        lines.append(f"  ... and {len(ordered) - _SHOWN} more: --all")
    if (best := best_of(trials, search)) is not None and best.value is not None:
        lines.append(f"best: {search.metric} {number(best.value)} (trial {best.number}): {command_of(record, best)}")
    return lines


def best_of(trials: Sequence[TrialView], search: Search) -> TrialView | None:
    """The trial that came to its end with the best score."""
    done = [trial for trial in trials if trial.state == "done" and trial.value is not None]
    return min(done, key=lambda trial: _rank(trial, search), default=None)


def command_of(record: SearchRecord, trial: TrialView) -> str:
    """The command that runs the whole experiment with a trial's values; what the trial has made is found."""
    own = [text for text in record.overrides if not text.startswith("search.")]
    return shlex.join(["maskgit", "run", *own, *(f"{key}={value}" for key, value in trial.params.items())])


def as_json(folder: Path) -> str:
    """The trials for scripts."""
    record, trials = SearchRecord.needed(folder), trials_of(folder)
    best = best_of(trials, record.search)
    rows = [{"number": t.number, "state": t.state, "params": dict(t.params), "value": t.value, "reason": t.reason,
             "values": {str(step): value for step, value in t.values.items()}} for t in trials]  # fmt: skip
    return json.dumps({"experiment": record.experiment, "search": folder.name, "uid": record.uid,
                       "metric": record.search.metric, "goal": record.search.goal, "asked": record.search.trials,
                       "best": best.number if best else None, "trials": rows}, indent=2)  # fmt: skip


def trials_of(folder: Path) -> list[TrialView]:
    """The trials in a search's journal; none where it has not begun."""
    if not (folder / JOURNAL).exists():
        return []
    return Study(folder, SearchRecord.needed(folder).search, queue.job_alive()).trials()


def _rank(trial: TrialView, search: Search) -> tuple[int, float]:
    """Trials that came further are in front; among them the better ones."""
    if trial.value is None:
        return (1, 0.0)
    return (-max(trial.values), trial.value if search.goal == "minimize" else -trial.value)


def _where(folder: Path, trial: TrialView) -> str:
    if trial.state != "running":
        return ""
    owner = Claim(folder / "trials" / f"{trial.number:04d}", queue.job_alive()).live_owner()
    return owner.where() if owner is not None else "nobody works on it"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
