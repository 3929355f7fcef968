"""Shipping 100,000 points to a fresh SQLite store, against `mlflow.log_metric` on the same kind of store.

    python -m tools.bench.shipping

Theirs is scaled from a few hundred points, logged in turns between our batches' rounds. Ours must take under 30 s.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

POINTS, METRICS, PLAIN = 100_000, 5, 100


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
        plain = _plain(mlflow)
        write_store(root, "bench", POINTS // METRICS)
        began, busy = time.perf_counter(), time.process_time()
        report = ship(root)
        ours, busy = time.perf_counter() - began, time.process_time() - busy
        assert report.points == POINTS, report
        plain = (plain + _plain(mlflow)) / 2
        began = time.perf_counter()
        assert ship(root).points == 0
        again = time.perf_counter() - began
        mlflow.end_run()
        client = MlflowClient(f"sqlite:///{root}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("bench").experiment_id], "tags.stage = 'train'")
        kept = sum(len(client.get_metric_history(run.info.run_id, f"m{k}")) for k in range(METRICS))
        assert kept == POINTS, kept
    theirs = plain * POINTS
    note = f"100,000 points into SQLite; theirs one mlflow.log_metric a point, scaled from {2 * PLAIN}"
    _print("ship_100k_points", ours, theirs, note)
    _print("ship_100k_points_cpu", busy, theirs, "the same, CPU seconds: what it takes on a quiet machine")
    _print("ship_nothing_new", again, theirs, "the next maskgit sync, when everything has arrived")


def _plain(mlflow: object) -> float:
    """Seconds a point of plain `mlflow.log_metric`."""
    began = time.perf_counter()
    for i in range(PLAIN):
        mlflow.log_metric("m", i * 0.5, step=i)  # type: ignore[attr-defined]
    return (time.perf_counter() - began) / PLAIN


def write_store(root: Path, name: str, steps: int) -> None:
    """An execution with one finished step that journaled `steps` times `METRICS` points."""
    from experiments.store.documents import Manifest, Notes, Request, Start
    from experiments.store.paths import StepFolder
    from experiments.store.records import PipelineRecord, PipelineStep
    from experiments.store.typed_json import fingerprint

    uid, print_ = f"20260101-000000-{name}", fingerprint(name)
    folder = root / "train" / f"{name}-{print_[:8]}"
    attempt = StepFolder(folder).attempt(1)
    attempt.files.mkdir(parents=True)
    with open(attempt.journal, "w") as file:
        for i in range(steps):
            metrics = {f"m{k}": i / (k + 1) for k in range(METRICS)}
            file.write(json.dumps({"step": i, "time": 1_790_000_000_000 + i, "metrics": metrics}) + "\n")
    request = Request(fingerprint=print_, stage="train", module="", version=1, kind="model", config={"lr": 0.1})
    request.write(folder)
    Start(time=1_790_000_000.0, pipeline=uid).write(attempt.path)
    Manifest.of_files(request, 1, attempt.files, Notes(), {}).write(folder)
    relative = str(folder.relative_to(root))
    entry = PipelineStep(name="train", step="train", stage="train", kind="model", fingerprint=print_, folder=relative)
    PipelineRecord(uid=uid, experiment=name, command="maskgit run", time=1_790_000_000.0, steps=(entry,)).save(root)


def _print(name: str, ours: float, theirs: float, note: str) -> None:
    figure = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    print(json.dumps({"name": name, **figure, "unit": "s", "note": note}), flush=True)


if __name__ == "__main__":
    main()
