"""The store's own database against the journals: SQLite has no checksums, so a flipped bit in it is silent.

Reads the file with Python's sqlite3 alone; no tracker is imported.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from experiments.tracking.embedded import damage
from experiments.tracking.points import first_points
from experiments.tracking.presentation import short_uid
from experiments.tracking.runs import Run, read_runs
from maskgit_core.errors import MaskgitError

Key = tuple[str, int]  # metric, step
REMEDY = "move the file away, and maskgit sync makes it anew from the store"
LARGEST = 1.7976931348623157e308  # how MLflow's SQL store writes infinity
RUNS = """SELECT uid.value, runs.run_uuid, shipped.value FROM runs
    JOIN tags AS uid ON uid.run_uuid = runs.run_uuid AND uid.key = 'maskgit.uid'
    LEFT JOIN tags AS shipped ON shipped.run_uuid = runs.run_uuid AND shipped.key = 'maskgit.shipped'
    WHERE runs.lifecycle_stage = 'active'"""
UNKNOWN = """SELECT key, run_uuid FROM latest_metrics WHERE NOT EXISTS (SELECT 1 FROM metrics
    WHERE metrics.run_uuid = latest_metrics.run_uuid AND metrics.key = latest_metrics.key
    AND metrics.step = latest_metrics.step AND metrics.value = latest_metrics.value)"""


def unlike_journals(store: Path) -> list[str]:
    """One line for each run whose points in `<store>/mlflow.db` are not those of its journals, or a damaged file."""
    path = store / "mlflow.db"
    if not path.is_file():
        return []
    if problem := damage(path):
        return [f"{path}: {problem}; {REMEDY}"]
    try:  # the database first: what is shipped meanwhile is in the journals by then
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            known = {uid: (run, _marks(shipped)) for uid, run, shipped in database.execute(RUNS)}
            rows = {run: _rows(database, run) for run, _ in known.values()}
            stale = list(database.execute(UNKNOWN))
        runs = read_runs(store)
    except (sqlite3.Error, MaskgitError) as error:  # busy, or a damaged document, which has been told
        return [f"{path}: {error}"] if isinstance(error, sqlite3.DatabaseError) and "locked" not in str(error) else []
    found = [f"the latest {key} of run {run} is none of its points" for key, run in stale]
    for run in runs:
        identity, marks = known.get(short_uid(run.uid), ("", {}))
        if identity:
            found += list(_unlike(run, rows[identity], marks))[:1]
    return [f"{path}: {problem}; {REMEDY}" for problem in found]


def _marks(shipped: str | None) -> dict[str, int]:
    with suppress(ValueError, TypeError):
        return {str(name): int(offset) for name, offset in json.loads(shipped or "{}").items()}
    return {}


def _rows(database: sqlite3.Connection, run: str) -> list[tuple[str, int, float]]:
    query = "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?"
    return [(str(k), int(step), math.nan if nan else float(v)) for k, step, v, nan in database.execute(query, (run,))]


def _unlike(run: Run, rows: list[tuple[str, int, float]], marks: Mapping[str, int]) -> Iterator[str]:
    """How a run's points differ; beside a number of its results, one of an earlier life of the step may stand."""
    journaled, there = _points(run, {}), dict[Key, list[float]]()
    results = {point.metric[:250]: point.value for point in run.results}
    # else its results, which MLflow may have from an earlier life, or its attempts are unknown
    done = run.state == "done" and bool(run.journals)
    for metric, step, value in rows:
        there.setdefault((metric, step), []).append(value)
    for (metric, step), values in there.items():
        right = journaled.get((metric, step))
        wrong = [v for v in values if (not _same(v, right) if right is not None else done)]
        if wrong and (metric not in results or (right is not None and len(wrong) == len(values))):
            known = "no journal has it" if right is None else f"its journal says {right}"
            yield f"{metric} of {run.uid} is {wrong[0]} at step {step}, but {known}"
    for metric, right in results.items() if run.state == "done" and run.parent is not None else ():
        shown = [v for key, values in there.items() if key[0] == metric and key not in journaled for v in values]
        if shown and not any(_same(value, right) for value in shown):
            yield f"{metric} of {run.uid} is {shown[0]}, but its result is {right}"
    lacking = journaled.keys() - _points(run, marks).keys() - there.keys()
    if lacking:
        metric, step = min(lacking)
        yield f"{len(lacking)} points of {run.uid} that were shipped are not there ({metric} at step {step})"


def _points(run: Run, marks: Mapping[str, int]) -> dict[Key, float]:
    """The points that are shipped after `marks`."""
    return {(p.metric[:250], p.step): p.value for batch in first_points(run.journals, marks) for p in batch.points}


def _same(value: float, right: float) -> bool:
    right = math.copysign(LARGEST, right) if math.isinf(right) else right
    return value == right or (math.isnan(value) and math.isnan(right))
