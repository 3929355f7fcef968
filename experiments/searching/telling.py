"""Messages of a search (`notify`): of each trial that failed, and once of its end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from experiments.console import number
from experiments.launching import notify
from experiments.searching.request import SearchRecord
from experiments.searching.study import Study
from experiments.store.records import PipelineRecord


def trial_failed(store: Path, record: SearchRecord, trial: int, why: str) -> None:
    """One message with the reason; never raises."""
    try:
        run = _told(store, record)
        if run is not None and run.settings["notify"].get("each_failure", True):
            text = f"{record.experiment}: trial {trial} of its search failed: {why}"
            _send(run, text, "failed", f"trial {trial}", why)
    except Exception as error:  # whatever it is, it is not the search's
        print(f"warning: notify: {error}", file=sys.stderr, flush=True)


def search_ended(store: Path, record: SearchRecord, study: Study) -> None:
    """One message with the number of trials in each state and the best, from the worker that sees the end first."""
    try:
        known, search = study.trials(), record.search
        run = _told(store, record)
        if run is None or len(known) < search.trials or any(trial.state == "running" for trial in known):
            return
        if not notify.first_to_tell(store, f"{record.uid}-{len(known)}"):
            return
        counts = Counter(trial.state for trial in known)
        told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
        scores = [trial.values[record.rungs[-1]] for trial in known if trial.state == "done"]
        best = (min if search.goal == "minimize" else max)(scores, default=None)
        more = f"; best {search.metric} {number(best)}" if best is not None else ""
        _send(run, f"{record.experiment}: its search is done: {told}{more} ({record.uid})", "ended", "", told)
    except Exception as error:
        print(f"warning: notify: {error}", file=sys.stderr, flush=True)


def _told(store: Path, record: SearchRecord) -> PipelineRecord | None:
    """The search's execution, where somebody wants to hear of it."""
    run = PipelineRecord.of(store, record.uid)
    return run if run is not None and notify.is_wanted(run.settings) else None


def _send(run: PipelineRecord, text: str, event: str, step: str, line: str) -> None:
    notify.send(run.settings["notify"], text, event=event, experiment=run.experiment, run=run.uid, step=step, line=line)
