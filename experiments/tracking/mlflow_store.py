"""Ships what the files hold to MLflow; the only file that imports mlflow.

`ship` brings what the store has into MLflow: found-or-created runs, params, tags, every point exactly once, small
artifacts, references to big ones, checkpoints as logged models, truthful ends. It may be killed anywhere and called
again, by several processes at once and from other machines (`experiments/tracking/points.py` explains why).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from experiments.config.settings import resolve_uri, without_password
from experiments.store.claims import Claim, JobAlive
from experiments.store.documents import DatasetUse
from experiments.store.journal import Point
from experiments.store.typed_json import Options
from experiments.tracking.address import ShipReport, knock, modules_set_apart, told
from experiments.tracking.embedded import embedded_lock, prepare_database
from experiments.tracking.points import first_points, last_points
from experiments.tracking.presentation import digest_of, dress, short_uid
from experiments.tracking.runs import Run, damaged_journals, read_runs
from maskgit_core.errors import TrackingError
from maskgit_core.files import read_json, write_for_group, write_json

UID, MARKS, DUPLICATE = "maskgit.uid", "maskgit.shipped", "maskgit.duplicate"
MAX_METRICS, MAX_PARAMS, MAX_TAGS, MAX_TEXT = 999, 100, 100, 6000  # a batch of metrics also carries the marks
DATASET_DIGEST = 36  # MLflow's limit
MAX_LOOKS = 4
MARK_EVERY = 8  # batches
#: The UI then opens on training runs and their charts.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}

#: Nothing is sent anywhere but to the store, a dead server answers within seconds, and MLflow prints nothing.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def ship(
    store: Path,
    uri: str | None = None,
    *,
    job_alive: JobAlive | None = None,
    pipelines: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    whole: bool = True,
) -> ShipReport:
    """Brings MLflow up to date with the store.

    Args:
        store: the store's root.
        uri: the tracking store; None for the embedded SQLite, which is opened under a lock.
        job_alive: asks the queue about a job id, so that lost jobs are shown as killed.
        pipelines, steps: only these executions (uids), only these steps (names) and their parents.
        whole: False: take an execution of which only some steps are looked at to be running.

    Raises:
        TrackingError: the server cannot be reached or refuses; what was shipped before stays shipped.
    """
    store = Path(store).absolute()
    write_for_group(store)
    address = resolve_uri(store, uri)
    report = ShipReport(address)
    with embedded_lock(store) if address.startswith("sqlite:") else nullcontext(), told(address), ExitStack() as stack:
        problem = prepare_database(store, _make_database) if address == resolve_uri(store, None) else None
        target = MlflowStore(store, address)
        if problem is not None:
            report.problems.append(problem)
            with suppress(AttributeError):  # connections of this process to the file that was set aside
                target.client._tracking_client.store.engine.dispose()
        stack.enter_context(modules_set_apart())
        # Looked at again after writing: what changed meanwhile (a step killed and taken up by another shipper's job)
        # must not be left as this look saw it. Whoever writes last also looks last.
        for _ in range(MAX_LOOKS):
            runs = read_runs(store, job_alive, pipelines, steps, whole)
            before, report.runs = set(target.shown), len(runs)
            sent = _show_all(target, runs, report)
            report.points += sent
            if target.shown == before and not sent:
                break
        if target.shown and whole and pipelines is None:
            dress(target.client, target.experiment_ids(), runs, target._run_ids)
    report.touched = len(touched := {uid for uid, _ in target.shown})
    report.problems += damaged_journals([run for run in runs if run.uid in touched])
    return report


def _make_database(address: str) -> None:
    MlflowStore.set_environment()
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=address).search_experiments()


def _show_all(target: MlflowStore, runs: Sequence[Run], report: ShipReport) -> int:
    sent = 0
    for run in runs:
        try:
            sent += target.show(run)
        except OSError as error:  # an artifact's file went away under us
            if str(error) not in str(report.problems):
                report.problems.append(f"{run.uid}: {error}")
    return sent


class MlflowStore:
    """One tracking store, with what this store's `tracking/` folder remembers of it.

    Raises whatever mlflow raises; use it inside `told`.
    """

    def __init__(self, store: Path, address: str) -> None:
        self.set_environment()
        from mlflow import MlflowClient

        if address.startswith("http"):
            knock(address)
        self.client = MlflowClient(tracking_uri=address)
        self.store = store
        self.address = address
        self.shown: set[tuple[str, str]] = set()  # uid and signature of what was written
        self._memory = store / "tracking" / hashlib.sha256(address.encode()).hexdigest()[:12]
        self._experiments: dict[str, str] = {}
        self._run_ids: dict[str, str] = {}

    @staticmethod
    def set_environment() -> None:
        """Keeps MLflow quiet and at home; call it before it is imported."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "mlflow", "mlflow.store.db.utils", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they print tracebacks of what is told in one line

    def show(self, run: Run) -> int:
        """Brings one run up to date; returns the number of points sent."""
        experiment = self._experiment(run.experiment)
        note = self._memory / experiment / f"{hashlib.sha256(run.uid.encode()).hexdigest()[:32]}.json"
        known = read_json(note) or {}
        signature = run.signature()
        if known.get("signature") == signature:
            self._run_ids[run.uid] = known["run_id"]
            return 0
        try:
            return self._bring(run, experiment, note, known)
        except Exception as error:
            if "must be in the 'active' state" not in str(error):
                raise
            # Deleted since it was noted: by hand, or as the twin of a run that another machine's shipper made.
            return self._bring(run, experiment, note, {})

    def _bring(self, run: Run, experiment: str, note: Path, known: Mapping[str, object]) -> int:
        """Everything MLflow should have of a run; `known` is what this store remembers of it."""
        signature = run.signature()
        run_id, marks = self._find_or_create(run, experiment, known)
        if run_id is None:  # deleted by hand: it stays deleted
            write_json(note, {"run_id": "", "signature": signature}, durable=False)
            return 0
        self._run_ids[run.uid] = run_id
        self.shown.add((run.uid, signature))
        facts, extras = digest_of([run.tags, run.params]), digest_of([run.results, run.attached()])
        again = known.get("run_id") != run_id
        if again or known.get("facts") != facts:
            self._say(run, run_id)
        try:
            sent = self._points(run, run_id, marks)
        except Exception:  # what has arrived need not be sent again
            write_json(note, {**known, "run_id": run_id, "signature": "", "marks": marks}, durable=False)
            raise
        if again or known.get("extras") != extras:
            self._results(run, run_id, experiment)
            self._attach(run, run_id)
        self._end(run, run_id)
        told = {"run_id": run_id, "signature": signature, "facts": facts, "extras": extras, "marks": marks}
        write_json(note, told, durable=False)
        return sent

    # -- finding ---------------------------------------------------------------------------------------------------
    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                # Artifacts of the embedded store are beside it; a server decides for itself.
                place = str(self.store / "mlflow-artifacts" / name) if self.address.startswith("sqlite:") else None
                with suppress(Exception):  # another shipper was faster
                    self.client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise TrackingError(f"experiment {name}: {without_password(self.address)} does not keep it")
            if experiment.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment {name}: was deleted in MLflow; restore it there (mlflow experiments restore -x "
                    f"{experiment.experiment_id}), then maskgit sync"
                )
            self._experiments[name] = f"{experiment.experiment_id}-{experiment.creation_time}"
        return self._experiments[name]

    def experiment_ids(self) -> dict[str, str]:
        """Name -> id of the experiments met so far."""
        return {name: identity.split("-")[0] for name, identity in self._experiments.items()}

    def _find_or_create(self, run: Run, experiment: str, known: Options) -> tuple[str | None, dict[str, int]]:
        if known.get("run_id") and "marks" in known:
            return str(known["run_id"]), dict(known["marks"])
        present, deleted = self._search(run, experiment)
        if present is None and deleted:
            return None, {}
        if present is None:
            with self._creation_lock():
                present, _ = self._search(run, experiment)
                if present is None:
                    self._create(run, experiment)
                    present, _ = self._search(run, experiment)
        if present is None:
            raise TrackingError(f"{run.uid}: {without_password(self.address)} lost the run it just made")
        return present.info.run_id, json.loads(present.data.tags.get(MARKS, "{}"))

    def _search(self, run: Run, experiment: str) -> tuple[Any | None, bool]:
        """The one run with this uid, and whether one was deleted by hand; of twins the first id stays."""
        from mlflow.entities import ViewType

        ids, uid = [experiment.split("-")[0]], short_uid(run.uid)
        tagged = list(self.client.search_runs(ids, f"tags.`{UID}` = '{uid}'", run_view_type=ViewType.ALL))
        active = sorted((r for r in tagged if r.info.lifecycle_stage == "active"), key=lambda r: r.info.run_id)
        for twin in active[1:]:  # two shippers made one at the same moment, or a reply was lost
            with suppress(Exception):
                self.client.set_tag(twin.info.run_id, DUPLICATE, active[0].info.run_id)
                self.client.delete_run(twin.info.run_id)
        by_hand = any(DUPLICATE not in r.data.tags for r in tagged if r.info.lifecycle_stage != "active")
        return (active[0] if active else None), by_hand

    def _create(self, run: Run, experiment: str) -> None:
        tags = {UID: short_uid(run.uid), "mlflow.source.type": "PROJECT"}
        if run.parent is not None and run.parent in self._run_ids:
            tags["mlflow.parentRunId"] = self._run_ids[run.parent]
        self.client.create_run(experiment.split("-")[0], start_time=run.start_ms, tags=tags, run_name=run.name)

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """Keeps shippers on one disk from making twins; without it (a dead host's lock) twins are merged anyway."""
        place = self._memory / "creating"
        place.mkdir(parents=True, exist_ok=True)
        claim = Claim(place)
        deadline = time.monotonic() + 30.0
        while claim.take() is not None and time.monotonic() < deadline:
            time.sleep(0.02 + random.random() * 0.05)
        try:
            yield
        finally:
            claim.release()

    # -- saying ----------------------------------------------------------------------------------------------------
    def _say(self, run: Run, run_id: str) -> None:
        from mlflow.entities import Param, RunTag

        tags = {k: v[:MAX_TEXT] for k, v in run.tags.items()}
        if run.parent is not None and run.parent in self._run_ids:
            tags["mlflow.parentRunId"] = self._run_ids[run.parent]
        params = {k[:250]: v[:MAX_TEXT] for k, v in run.params.items()}
        for part in _chunks(list(tags.items()), MAX_TAGS):
            self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in part])
        for part in _chunks(list(params.items()), MAX_PARAMS):
            self.client.log_batch(run_id, params=[Param(k, v) for k, v in part])

    def _points(self, run: Run, run_id: str, marks: dict[str, int]) -> int:
        from mlflow.entities import RunTag

        sent = 0
        for number, batch in enumerate(first_points(run.journals, marks, MAX_METRICS)):
            # The offset only saves work: it need not follow every batch.
            tags = [RunTag(MARKS, json.dumps(batch.marks))] if number % MARK_EVERY == 0 else []
            self.client.log_batch(run_id, metrics=[_metric(p) for p in batch.points], tags=tags)
            sent += len(batch.points)
            marks.update(batch.marks)
        if sent:
            self.client.log_batch(run_id, tags=[RunTag(MARKS, json.dumps(marks))])
        return sent

    def _results(self, run: Run, run_id: str, experiment: str) -> None:
        if not run.results:
            return
        journaled = last_points(run.journals)  # a score that was also logged is that point, not one more
        points = [journaled.get(p.metric, p) for p in run.results]
        self.client.log_batch(run_id, metrics=[_metric(p) for p in points])
        for fingerprint in run.scored_models:
            if (model_id := self._model_id(fingerprint, experiment)) is not None:
                self.client.log_batch(run_id, metrics=[_metric(p, model_id) for p in points])

    def _model_id(self, fingerprint: str, experiment: str) -> str | None:
        logged = self.client.search_logged_models(
            [experiment.split("-")[0]], filter_string=f"tags.fingerprint = '{fingerprint}'"
        )
        return str(logged[0].model_id) if logged else None

    def _attach(self, run: Run, run_id: str) -> None:
        for path, place in run.uploads:
            self.client.log_artifact(run_id, str(path), place or None)
        for name, text in run.texts.items():
            self.client.log_text(run_id, text, name)
        if run.datasets:
            self.client.log_inputs(run_id, [_dataset(d) for d in run.datasets])
        if run.model is not None and self._model_id(run.model["fingerprint"], self._experiment(run.experiment)) is None:
            tags = {k: str(v) for k, v in run.model.items() if k != "name"}
            made = self.client.create_logged_model(
                self._experiment(run.experiment).split("-")[0],
                name=run.model["name"],
                source_run_id=run_id,
                tags=tags,
                params={k: v[:MAX_TEXT] for k, v in run.params.items()},
                model_type="maskgit",
            )
            self.client.finalize_logged_model(made.model_id, "READY")

    def _end(self, run: Run, run_id: str) -> None:
        if run.is_final:
            self.client.set_terminated(run_id, run.status, run.end_ms)
        else:
            self.client.update_run(run_id, status=run.status)


def _metric(point: Point, model_id: str | None = None) -> Any:
    from mlflow.entities import Metric

    return Metric(point.metric[:250], point.value, point.time, point.step, model_id=model_id)


def _dataset(use: DatasetUse) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": use.path, "digest": use.digest})
    data = Dataset(use.name[:500], use.digest[:DATASET_DIGEST], "local", source)
    return DatasetInput(data, [InputTag("mlflow.data.context", use.context[:500])])


def _chunks(items: Sequence[object], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
