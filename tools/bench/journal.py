"""Logging a metric on the training thread: our journal, against `mlflow.log_metric` on an SQLite store.

    python -m tools.bench.journal

Both sides log the same metrics in this one run, interleaved. Ours must stay under 50 µs a metric.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

ROUNDS, OURS, THEIRS, METRICS = 8, 2000, 10, 5


def main() -> None:
    """Prints one JSON object a figure."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    from experiments.store.journal import Journal, read_points

    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/plain.db")
        mlflow.set_experiment("bench")
        mine, plain, calls = [], [], []
        with Journal(Path(folder, "attempts", "0001", "journal.jsonl")) as journal, mlflow.start_run():
            for number in range(ROUNDS):
                began = time.perf_counter()
                for i in range(OURS):
                    started = time.perf_counter()
                    journal.log({f"m{k}": i * 0.5 for k in range(METRICS)}, number * OURS + i)
                    calls.append(time.perf_counter() - started)
                mine.append((time.perf_counter() - began) / OURS / METRICS)
                began = time.perf_counter()
                for i in range(THEIRS):
                    mlflow.log_metric("m", i * 0.5, step=number * THEIRS + i)
                plain.append((time.perf_counter() - began) / THEIRS)
        assert len(read_points(Path(folder))) == ROUNDS * OURS * METRICS
    ours, theirs = statistics.median(mine) * 1e6, statistics.median(plain) * 1e6
    note = f"a metric on the training thread; ours in groups of {METRICS}, theirs mlflow.log_metric on SQLite"
    _print("journal_metric", ours, theirs, "us", note)
    slowest = sorted(calls)[int(len(calls) * 0.999)] * 1e6 / METRICS
    _print("journal_metric_p999", slowest, theirs, "us", "the slowest of a thousand calls, a metric")


def _print(name: str, ours: float, theirs: float, unit: str, note: str) -> None:
    figure = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    print(json.dumps({"name": name, **figure, "unit": unit, "note": note}), flush=True)


if __name__ == "__main__":
    main()
