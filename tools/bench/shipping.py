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
    from experiments.store.step_folder import fingerprint
    from maskgit_core.files import write_json

    uid, print_ = f"20260101-000000-{name}", fingerprint(name)
    folder = root / "train" / f"{name}-{print_[:8]}"
    own = folder / "attempts" / "0001"
    (own / "files").mkdir(parents=True)
    with open(own / "journal.jsonl", "w") as file:
        for i in range(steps):
            metrics = {f"m{k}": i / (k + 1) for k in range(METRICS)}
            file.write(json.dumps({"step": i, "time": 1_790_000_000_000 + i, "metrics": metrics}) + "\n")
    write_json(folder / "request.json", {"fingerprint": print_, "stage": "train", "config": {"lr": 0.1}})
    write_json(own / "start.json", {"time": 1_790_000_000.0, "pipeline": uid})
    mark = {"attempt": 1, "outputs": {}, "time": 1_790_000_100.0, "facts": {}, "digest": "d"}
    write_json(folder / "manifest.json", mark)
    entry = {"name": "train", "step": "train", "stage": "train", "kind": "model", "fingerprint": print_,
             "folder": str(folder.relative_to(root)), "params": {}, "needs": []}  # fmt: skip
    record = {"uid": uid, "experiment": name, "command": "maskgit run", "time": 1_790_000_000.0, "items": [],
              "steps": [entry]}  # fmt: skip
    write_json(root / "pipelines" / f"{uid}.json", record)


def _print(name: str, ours: float, theirs: float, note: str) -> None:
    figure = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    print(json.dumps({"name": name, **figure, "unit": "s", "note": note}), flush=True)


if __name__ == "__main__":
    main()
