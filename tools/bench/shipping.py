"""Shipping 100,000 points to a fresh SQLite store, against MLflow's `log_batch` on the same kind of store.

    python -m tools.bench.shipping

Theirs sends batches of 1,000 points, the most that MLflow takes at once, half of them before ours and half after.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench._figures import budget, figure, named

POINTS, METRICS, BATCH = 100_000, 5, 1000


def main() -> None:
    """Prints one JSON object a figure."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow import MlflowClient

    from experiments.tracking.mlflow_store import ship

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        write_store(root, "warm", 5)  # the first start of a store is not what is measured
        ship(root)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/plain.db")
        mlflow.set_experiment("bench")
        mlflow.log_metric("warm", 1.0)
        plain = _batches(mlflow, 0)
        write_store(root, "bench", POINTS // METRICS)
        began, busy = time.perf_counter(), time.process_time()
        report = ship(root)
        ours, busy = time.perf_counter() - began, time.process_time() - busy
        assert report.points == POINTS, report
        theirs = [a + b for a, b in zip(plain, _batches(mlflow, POINTS // 2), strict=True)]
        began = time.perf_counter()
        assert ship(root).points == 0
        again = time.perf_counter() - began
        mlflow.end_run()
        client = MlflowClient(f"sqlite:///{root}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("bench").experiment_id], "tags.stage = 'train'")
        kept = sum(len(client.get_metric_history(run.info.run_id, f"m{k}")) for k in range(METRICS))
        assert kept == POINTS, kept
    note = f"100,000 points into SQLite; theirs log_batch of {BATCH} points, {named('mlflow')}"
    figure("ship_100k_points", ours, theirs[0], "s", note)
    figure("ship_100k_points_cpu", busy, theirs[1], "CPU s", note)
    budget("ship_nothing_new", again, 2.0, "s", "the next maskgit sync, when everything has arrived")


def _batches(mlflow: Any, first: int) -> list[float]:
    """Wall and CPU seconds of half of the points, sent in batches."""
    from mlflow.entities import Metric

    client, run_id = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    began, busy = time.perf_counter(), time.process_time()
    for start in range(first, first + POINTS // 2, BATCH):
        steps = range(start // METRICS, (start + BATCH) // METRICS)
        client.log_batch(
            run_id, [Metric(f"m{k}", i / (k + 1), 1_790_000_000_000 + i, i) for i in steps for k in range(METRICS)]
        )
    return [time.perf_counter() - began, time.process_time() - busy]


def write_store(root: Path, name: str, steps: int) -> None:
    """An execution with one finished step that journaled `steps` times `METRICS` points."""
    from experiments.store.documents import Manifest, Notes, Request, Start
    from experiments.store.paths import StepFolder
    from experiments.store.records import PipelineRecord, PipelineStep
    from experiments.store.typed_json import fingerprint

    uid, identity = f"20260101-000000-{name}", fingerprint(name)
    folder = root / "train" / f"{name}-{identity[:8]}"
    attempt = StepFolder(folder).attempt(1)
    attempt.files.mkdir(parents=True)
    with open(attempt.journal, "w") as file:
        for i in range(steps):
            metrics = {f"m{k}": i / (k + 1) for k in range(METRICS)}
            file.write(json.dumps({"step": i, "time": 1_790_000_000_000 + i, "metrics": metrics}) + "\n")
    request = Request(fingerprint=identity, stage="train", module="", version=1, kind="model", config={"lr": 0.1})
    request.write(folder)
    Start(time=1_790_000_000.0, pipeline=uid).write(attempt.path)
    Manifest.of_files(request, 1, attempt.files, Notes(), {}).write(folder)
    relative = str(folder.relative_to(root))
    entry = PipelineStep(name="train", step="train", stage="train", kind="model", fingerprint=identity, folder=relative)
    PipelineRecord(uid=uid, experiment=name, command="maskgit run", time=1_790_000_000.0, steps=(entry,)).save(root)


if __name__ == "__main__":
    main()
