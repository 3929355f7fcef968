"""How far a step has come, as plain data that changes when it gets on; asked when a job starts once more."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.store.journal import SYSTEM_PREFIX
from experiments.store.paths import StepFolder


def mark(folder: str, *share: int) -> list[object]:
    """Highest step in any journal, names of checkpoints, and the number of finished pieces (of all shares)."""
    step = StepFolder(Path(folder))
    highest = -1
    names: list[str] = []
    for attempt in step.attempts():
        highest = max(highest, _last_step(attempt.journal))
        names += sorted(p.name for p in attempt.checkpoints.iterdir()) if attempt.checkpoints.is_dir() else []
    pieces = sum(1 for p in step.parts.rglob("*") if p.is_file()) if step.parts.is_dir() else 0
    return [highest, sorted(set(names)), pieces]


def _last_step(journal: Path) -> int:
    """The highest step among the last lines of a journal; -1 where there is none."""
    try:
        with open(journal, "rb") as file:
            file.seek(max(0, journal.stat().st_size - 65536))
            lines = file.read().splitlines()
    except OSError:
        return -1
    last = -1
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        named = isinstance(entry, dict) and isinstance(entry.get("step"), int)
        # Metrics of the machine count seconds, which pass whether or not the work gets on.
        if named and not all(name.startswith(SYSTEM_PREFIX) for name in entry.get("metrics", {})):
            last = max(last, entry["step"])
    return last
