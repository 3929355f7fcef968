"""Hours and GPU-hours of steps, from their files alone: every attempt counts, also those that were lost."""

from pathlib import Path

from tracked_store import T0, TrackedStore

from experiments.monitoring.usage import hours_table, step_hours
from maskgit_core.files import write_json

EIGHT = {"ranks": 8, "gpus_per_task": 1}


def test_all_attempts_of_a_step_count(tmp_path: Path) -> None:
    store = TrackedStore(tmp_path)
    folder = store.step("train", "train", "model", {"lr": 1.0})
    for number, (start, end) in enumerate(((T0, 1800.0), (T0 + 7200, None)), 1):
        own = store.attempt(folder, number)
        write_json(own / "start.json", {"time": start, "pipeline": store.uid, "attempt": number, "resources": EIGHT})
        if end is not None:
            write_json(own / "end.json", {"state": "stopped", "time": start + end})
    store.done(folder, 2, at=T0 + 7200 + 3600)
    assert step_hours(folder) == (1.5, 12.0)
    report = store.step("report", "report", "report", {})
    rows = [{"name": "train[lr=1]", "folder": str(folder)}, {"name": "report", "folder": str(report)}]
    lines = [line.split() for line in hours_table(rows).splitlines()]
    assert lines[1:] == [
        ["train", "1", "1.50", "12.00"],
        ["report", "1", "0.00", "0.00"],
        ["all", "2", "1.50", "12.00"],
    ]
