"""Logging a metric on the training thread: our journal, against MLflow's asynchronous `log_metrics` on an SQLite store.

    python -m tools.bench.journal

Both sides log the same metrics in this one run, interleaved. Ours must stay under 50 µs a metric.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tools.bench._figures import budget, figure, named

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
                    values = {f"m{k}": i * 0.5 for k in range(METRICS)}
                    mlflow.log_metrics(values, step=number * THEIRS + i, synchronous=False)
                plain.append((time.perf_counter() - began) / THEIRS / METRICS)
                mlflow.flush_async_logging()
        assert len(read_points(Path(folder))) == ROUNDS * OURS * METRICS
    microseconds = [[1e6 * value for value in side] for side in (mine, plain)]
    peer = f"theirs asynchronous, on SQLite, {named('mlflow')}"
    note = f"a metric on the training thread, logged in groups of {METRICS}; {peer}"
    figure("journal_metric", *microseconds, "us", note)
    slowest = sorted(calls)[int(len(calls) * 0.999)] * 1e6 / METRICS
    budget("journal_metric_p999", slowest, 50.0, "us", "a metric of the slowest of a thousand calls")


if __name__ == "__main__":
    main()
