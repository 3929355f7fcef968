"""MLflow shows what the files say: lineage, params, exactly the points, truthful ends; on a real embedded store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import empty_database
from step_documents import with_facts, write_manifest, write_request
from tracked_store import T0, TrackedStore, lines, write_scores

from experiments.store.documents import Launch
from experiments.tracking import mlflow_store
from experiments.tracking.mlflow_store import ship
from maskgit_core.errors import TrackingError
from maskgit_core.files import write_json

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path, tmp_path_factory):
    (tmp_path / "store").mkdir()
    shutil.copy(empty_database(tmp_path_factory), tmp_path / "store" / "mlflow.db")
    return TrackedStore(tmp_path / "store")


def client(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path, name: str | None = None):
    c = client(root)
    ids = [e.experiment_id for e in c.search_experiments()]
    found = c.search_runs(ids)
    return [r for r in found if name in (None, r.info.run_name)]


def history(root: Path, name: str, metric: str) -> list[tuple[int, float]]:
    (run,) = runs(root, name)
    return [(m.step, m.value) for m in client(root).get_metric_history(run.info.run_id, metric)]


def trained(store: TrackedStore, name="train", params=None, **config) -> Path:
    """A finished training step with 30 points and a checkpoint."""
    folder = store.step(name, "train", "model", {"lr": 0.1, "model": {"name": "tiny", "dim": 8}, **config}, (), params)
    own = store.attempt(folder)
    lines(own / "journal.jsonl", [(i, {"loss": 1.0 / (i + 1)}) for i in range(30)], int(T0 * 1000) + 11_000)
    (own / "files" / "model.safetensors").write_bytes(b"weights" * 10)
    (own / "files" / "grid.png").write_bytes(b"png")
    data = {"name": "photos", "digest": "d" * 64, "path": "/data", "context": "training"}
    store.done(folder, shown=["grid.png"], datasets=[data])
    return folder


def evaluated(store: TrackedStore, needs, name="evaluate", value=2.5, params=None) -> Path:
    folder = store.step(name, "evaluate", "scores", {"n": 5, "v": value}, needs, params)
    own = store.attempt(folder)
    write_scores(own / "files", "p", {"n": 5}, fid=value, accuracy=0.8)
    store.done(folder, headline={"name": "fid", "value": value, "protocol": {"name": "p", "n": 5}})
    return folder


def test_a_pipeline_becomes_a_parent_with_its_steps_and_their_lineage(store):
    trained(store, params={"train.warmup": 5}, seed=4)
    evaluated(store, [store.steps[0]["fingerprint"]], params={"train.warmup": 5})
    report = ship(store.root)
    assert (report.runs, report.points, report.problems) == (3, 30, [])
    parent = next(r for r in runs(store.root) if r.data.tags["stage"] == "pipeline")
    train, evaluate = runs(store.root, "train")[0], runs(store.root, "evaluate")[0]
    assert {train.data.tags["mlflow.parentRunId"], evaluate.data.tags["mlflow.parentRunId"]} == {parent.info.run_id}
    assert {r.info.status for r in (parent, train, evaluate)} == {"FINISHED"}
    tags = train.data.tags
    assert (tags["stage"], tags["experiment"], tags["seed"], tags["item"]) == ("train", "toy", "4", "train.warmup=5")
    assert tags["commit"] == "c" * 40 and tags["fingerprint"] == store.steps[0]["fingerprint"]
    assert evaluate.data.tags["upstream"] == f"{store.uid}/train"
    carried = evaluate.data.params  # the sweep's value and the config from upstream, beside the score
    assert (carried["train.warmup"], carried["train.lr"], carried["model.dim"]) == ("5", "0.1", "8")
    assert evaluate.data.metrics == {"fid": 2.5, "accuracy": 0.8}
    own = {"train.lr": "0.1", "model.name": "tiny", "model.dim": "8", "train.seed": "4", "train.warmup": "5"}
    assert train.data.params == own
    (dataset,) = train.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("photos", "training")
    assert train.info.start_time == int((T0 + 10) * 1000) and train.info.end_time == int((T0 + 100) * 1000)
    assert history(store.root, "train", "loss") == [(i, 1.0 / (i + 1)) for i in range(30)]


def test_big_files_are_references_and_small_ones_are_there(store):
    folder = trained(store)
    ship(store.root)
    (run,) = runs(store.root, "train")
    names = {f.path for f in client(store.root).list_artifacts(run.info.run_id)}
    assert names == {"request.json", "outputs.json", "grid.png"}
    listed = json.loads(Path(client(store.root).download_artifacts(run.info.run_id, "outputs.json")).read_text())
    weights = listed["model.safetensors"]
    assert weights["size"] == 70 and len(weights["sha256"]) == 64
    assert Path(weights["path"]) == folder / "attempts" / "0001" / "files" / "model.safetensors"


def test_scores_find_the_checkpoint_they_are_about(store):
    folder = trained(store)
    sample = store.step("sample", "sample", "samples", {}, [store.steps[0]["fingerprint"]])
    store.attempt(sample)
    store.done(sample)
    evaluated(store, [store.steps[1]["fingerprint"]])
    ship(store.root)
    c = client(store.root)
    ids = [e.experiment_id for e in c.search_experiments()]
    (found,) = c.search_logged_models(ids, filter_string="metrics.fid < 3")
    assert found.tags["path"] == str(folder / "attempts" / "0001" / "files")
    assert found.source_run_id == runs(store.root, "train")[0].info.run_id
    assert c.search_logged_models(ids, filter_string="metrics.fid < 2") == []


def test_scores_find_a_checkpoint_that_another_experiment_made_or_that_a_training_keeps(store):
    made = trained(store)
    ship(store.root)
    later = TrackedStore(store.root, "20260102-000000-bbbbbbbb", experiment="later")
    later.steps = [dict(store.steps[0], action="done")]
    kept = made / "kept" / "000000700"
    files = kept / "attempts" / "0001" / "files"
    files.mkdir(parents=True)
    (files / "model.safetensors").write_bytes(b"halfway")
    fingerprint = "f" * 64
    write_request(kept, "model", fingerprint, config={"lr": 0.1})
    write_manifest(kept)
    entry = {
        **later.steps[0],
        "name": "train@700",
        "fingerprint": fingerprint,
        "needs": [later.steps[0]["fingerprint"]],
    }
    later.steps.append({**entry, "folder": str(kept.relative_to(store.root))})
    evaluated(later, [later.steps[0]["fingerprint"]], value=2.0)
    evaluated(later, [fingerprint], name="evaluate_half", value=2.9)
    assert ship(store.root).problems == []
    c = client(store.root)
    place = c.get_experiment_by_name("later").experiment_id
    found = c.search_logged_models([place], filter_string="metrics.fid < 3")
    assert {m.tags["path"] for m in found} == {str(made / "attempts" / "0001" / "files"), str(files)}
    (best,) = c.search_logged_models([place], filter_string="metrics.fid < 2.5")
    assert best.tags["path"] == str(made / "attempts" / "0001" / "files")
    assert {m.name for m in found} == {made.name, f"{made.name}-at-700"}


def test_shipping_again_changes_nothing_even_with_all_notes_lost(store):
    trained(store)
    ship(store.root)
    before = [(r.info.run_id, r.data.metrics, dict(r.data.tags)) for r in runs(store.root)]
    again = ship(store.root)
    assert (again.touched, again.points) == (0, 0)
    shutil.rmtree(store.root / "tracking")
    c = client(store.root)
    for run in runs(store.root):  # the offsets in MLflow too
        if "maskgit.shipped" in run.data.tags:
            c.delete_tag(run.info.run_id, "maskgit.shipped")
    assert ship(store.root).points == 30  # all sent again, and still there once
    assert len(history(store.root, "train", "loss")) == 30
    assert [(r.info.run_id, r.data.metrics, dict(r.data.tags)) for r in runs(store.root)] == before


@pytest.mark.parametrize("call", ["log_batch", "create_run", "set_terminated", "log_text", "create_logged_model"])
def test_a_reply_lost_after_the_store_committed_doubles_nothing(store, monkeypatch, call):
    from mlflow import MlflowClient

    trained(store)
    evaluated(store, [store.steps[0]["fingerprint"]])
    real, losses = getattr(MlflowClient, call), []

    def lossy(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        if len(losses) < 3:
            losses.append(call)
            raise ConnectionResetError("reply lost")
        return result

    monkeypatch.setattr(MlflowClient, call, lossy)
    for _ in range(8):
        try:
            ship(store.root)
        except OSError:
            continue
    assert len(losses) == 3 or call == "create_logged_model"
    assert sorted(r.info.run_name for r in runs(store.root)) == ["evaluate", "toy 20260101-000000", "train"]
    assert history(store.root, "train", "loss") == [(i, 1.0 / (i + 1)) for i in range(30)]
    assert history(store.root, "evaluate", "fid") == [(0, 2.5)]
    assert {r.info.status for r in runs(store.root)} == {"FINISHED"}


def test_after_a_failure_only_what_has_not_arrived_is_sent(store, monkeypatch):
    from mlflow import MlflowClient

    folder = store.step("train", "train", "model", {})
    journal = store.attempt(folder) / "journal.jsonl"
    lines(journal, [(i, {"loss": float(i)}) for i in range(5000)], int(T0 * 1000) + 11_000)
    real, batches = MlflowClient.log_batch, []

    def failing(self, run_id, metrics=(), **more):
        batches.append(len(metrics)) if metrics else None
        if len(batches) == 4:
            raise ConnectionResetError("gone")
        return real(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    assert ship(store.root).problems != []
    monkeypatch.undo()
    assert ship(store.root).points == 5000 - 3 * batches[0]
    assert history(store.root, "train", "loss") == [(i, float(i)) for i in range(5000)]


def test_twins_made_at_the_same_moment_become_one(store):
    folder = trained(store)
    ship(store.root)
    c, (run,) = client(store.root), runs(store.root, "train")
    c.create_run(run.info.experiment_id, tags={mlflow_store.UID: run.data.tags[mlflow_store.UID]}, run_name="train")
    shutil.rmtree(store.root / "tracking")
    write_json(folder / "attempts" / "0001" / "end.json", {"state": "done", "time": T0 + 101})
    ship(store.root)
    assert len(history(store.root, "train", "loss")) == 30


@pytest.mark.parametrize("notes", ["kept", "lost"])
def test_a_run_deleted_by_hand_stays_deleted(store, notes):
    folder = trained(store)
    ship(store.root)
    (run,) = runs(store.root, "train")
    client(store.root).delete_run(run.info.run_id)
    if notes == "lost":
        shutil.rmtree(store.root / "tracking")
    lines(folder / "attempts" / "0001" / "journal.jsonl", [(99, {"loss": 0.0})])
    ship(store.root)
    assert runs(store.root, "train") == []


def test_a_twin_deleted_by_another_machine_passes_its_points_on(store):
    """Two machines that share no lock made the run at one moment; the one whose run went goes on in the other's."""
    folder = store.step("train", "train", "model", {})
    journal = store.attempt(folder) / "journal.jsonl"
    lines(journal, [(i, {"loss": float(i)}) for i in range(20)], int(T0 * 1000) + 11_000)
    ship(store.root)
    c, (run,) = client(store.root), runs(store.root, "train")
    twin = c.create_run(
        run.info.experiment_id, tags={mlflow_store.UID: run.data.tags[mlflow_store.UID]}, run_name="train"
    )
    c.set_tag(run.info.run_id, mlflow_store.DUPLICATE, twin.info.run_id)
    c.delete_run(run.info.run_id)
    lines(journal, [(i, {"loss": float(i)}) for i in range(20, 50)], int(T0 * 1000) + 12_000)
    ship(store.root)
    assert [r.info.run_id for r in runs(store.root, "train")] == [twin.info.run_id]
    assert history(store.root, "train", "loss") == [(i, float(i)) for i in range(50)]


def test_data_sets_are_inputs_with_the_digest_of_their_content(store):
    """The pictures a step's config names, and the shards a model is trained on, under the digest the cache stated."""
    cache = store.step("cache", "cache_tokens", "tokens", {"dataset": {"name": "photos", "split": "train"}})
    request = json.loads((cache / "request.json").read_text())
    request["modules"] = {"dataset": "maskgit_core.datasets.photos", "sampler": "maskgit_core.samplers.halton"}
    request["outside"] = {"dataset.root": "a" * 64}
    write_json(cache / "request.json", request)
    content = {"dataset.root": "/data/photos"}
    Launch(name="cache", step="cache", experiment="toy", pipeline=store.uid, content=content).write(cache)
    store.attempt(cache)
    shards = {"name": "photos", "digest": "b" * 16, "path": "/store/files", "context": "tokens"}
    store.done(cache, datasets=[shards])
    train = store.step("train", "train", "model", {}, [store.steps[0]["fingerprint"]])
    request = json.loads((train / "request.json").read_text())
    request["inputs"] = {"tokens": [{key: store.steps[0][key] for key in ("fingerprint", "folder")}]}
    write_json(train / "request.json", request)
    store.attempt(train)
    ship(store.root)

    def inputs(name: str) -> set[tuple[str, ...]]:
        (run,) = runs(store.root, name)
        found = [(d.dataset, d.tags[0].value) for d in run.inputs.dataset_inputs]
        return {(d.name, d.digest, json.loads(d.source)["uri"], context) for d, context in found}

    pictures, tokens = ("photos", "a" * 36, "/data/photos"), ("photos", "b" * 16, "/store/files")
    assert inputs("cache") == {(*pictures, "source"), (*tokens, "tokens")}
    assert inputs("train") == {(*tokens, "training")}  # known while it still runs


def test_what_has_not_changed_is_not_uploaded_again(store, monkeypatch):
    from mlflow import MlflowClient

    folder = store.step("train", "train", "model", {"lr": 0.1})
    journal = store.attempt(folder) / "journal.jsonl"
    uploads: list[str] = []
    real = MlflowClient.log_text
    monkeypatch.setattr(MlflowClient, "log_text", lambda self, run, text, name: uploads.append(name) or
                        real(self, run, text, name))  # fmt: skip
    for step in range(3):
        lines(journal, [(step, {"loss": 1.0})], int(T0 * 1000) + 11_000 + step)
        ship(store.root)
    assert uploads.count("request.json") == 1
    store.done(folder)
    ship(store.root)
    assert uploads.count("request.json") == 2 and "outputs.json" in uploads
    assert len(history(store.root, "train", "loss")) == 3


def test_a_resumed_curve_has_no_zigzag_and_no_double_points(store):
    folder = store.step("train", "train", "model", {})
    first = store.attempt(folder, 1)
    lines(first / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(60)], int(T0 * 1000) + 11_000)
    ship(store.root)
    assert runs(store.root, "train")[0].info.status == "KILLED"
    second = store.attempt(folder, 2, at=T0 + 60)
    lines(
        second / "journal.jsonl",
        [(i, {"loss": float(i)}) for i in range(50, 90)],
        int(T0 * 1000) + 61_000,
        resumed_at=50,
    )
    store.done(folder, 2)
    ship(store.root)
    assert history(store.root, "train", "loss") == [(i, float(i)) for i in range(90)]
    assert runs(store.root, "train")[0].info.status == "FINISHED"


def test_a_requeued_step_waits_and_continues_the_same_run(store):
    """Preempted by SLURM: in the queue it is scheduled, not killed; its second attempt goes on where it was."""
    folder = store.step("train", "train", "model", {})
    store.write(settings={"launcher": {"name": "slurm"}})
    write_json(folder / "submitted.json", {"links": ["7"], "pipeline": store.uid})
    queue = {"7": True}

    def shown() -> str:
        ship(store.root, job_alive=lambda job, *_: queue.get(job))
        (run,) = runs(store.root, "train")
        return run.info.status

    assert shown() == "SCHEDULED"
    first = store.attempt(folder, 1)
    lines(first / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(40)], int(T0 * 1000) + 11_000)
    write_json(first / "end.json", {"state": "stopped", "code": 75, "time": T0 + 50})
    assert shown() == "SCHEDULED"
    ship(store.root)  # a job's own shipper, which does not ask the queue
    assert runs(store.root, "train")[0].info.status == "SCHEDULED"
    second = store.attempt(folder, 2, at=T0 + 60)
    points = [(i, {"loss": float(i)}) for i in range(30, 70)]
    lines(second / "journal.jsonl", points, int(T0 * 1000) + 61_000, resumed_at=30)
    store.done(folder, 2)
    queue.clear()
    assert shown() == "FINISHED"
    assert history(store.root, "train", "loss") == [(i, float(i)) for i in range(70)]


def test_a_stopped_step_that_left_the_queue_is_killed(store):
    folder = store.step("train", "train", "model", {})
    store.write(settings={"launcher": {"name": "slurm"}})
    write_json(folder / "submitted.json", {"links": ["7"], "pipeline": store.uid})
    write_json(store.attempt(folder) / "end.json", {"state": "stopped", "code": 75, "time": T0 + 50})
    ship(store.root, job_alive=lambda *_: True)
    assert runs(store.root, "train")[0].info.status == "SCHEDULED"
    ship(store.root, job_alive=lambda *_: False)
    assert {r.info.status for r in runs(store.root)} == {"KILLED"}


@pytest.mark.parametrize("refused", [True, False])
def test_a_job_that_ended_before_its_step_began_is_not_scheduled_for_ever(store, refused):
    folder = store.step("train", "train", "model", {})
    store.write(settings={"launcher": {"name": "slurm"}})
    write_json(folder / "submitted.json", {"links": ["7"], "pipeline": store.uid})
    if refused:  # its inputs were gone, say
        write_json(folder / "refused.json", {"reason": "tokens: missing", "time": T0 + 5})
    ship(store.root, job_alive=lambda *_: False)
    assert {r.info.status for r in runs(store.root)} == {"FAILED" if refused else "KILLED"}


@pytest.mark.parametrize(
    ("end", "status"),
    [({"state": "failed"}, "FAILED"), ({"state": "stopped"}, "KILLED"), (None, "KILLED"), ("cancelled", "KILLED")],
)
def test_a_step_that_died_is_not_running_for_ever(store, end, status):
    folder = store.step("train", "train", "model", {})
    own = store.attempt(folder)
    me = {"host": os.uname().nodename, "boot": "", "pid": os.getpid(), "pid_start": 0, "user": "ada", "token": "x"}
    write_json(folder / "claim.json", me)
    ship(store.root)
    assert runs(store.root, "train")[0].info.status == "RUNNING"
    write_json(folder / "claim.json", {**me, "pid": 2**22 + 1})  # no such process
    if end == "cancelled":
        (folder / "cancelled").write_text("")
    elif end:
        write_json(own / "end.json", {**end, "time": T0 + 50})
    ship(store.root)
    assert {r.info.status for r in runs(store.root)} == {status}


def test_every_finished_step_has_a_number_it_is_known_by(store):
    """A model its last loss, also where it is only reused; a cache how many samples it holds."""
    cache = store.step("cache", "cache_tokens", "tokens", {})
    store.attempt(cache)
    store.done(cache)
    with_facts(cache, num_samples=500)
    trained(store)
    later = TrackedStore(store.root, "20260102-000000-bbbbbbbb")
    later.steps = [dict(step, action="done") for step in store.steps]
    later.write()
    ship(store.root)
    for run in (*runs(store.root, "cache"), *runs(store.root, "train")):
        headline = run.data.tags["headline"]
        assert (headline, run.data.metrics[headline]) in {("num_samples", 500.0), ("loss", 1.0 / 30)}
    own = next(r for r in runs(store.root, "train") if r.data.tags["pipeline"] == store.uid)
    assert len(client(store.root).get_metric_history(own.info.run_id, "loss")) == 30


def test_a_finished_step_appears_under_a_later_pipeline_as_a_light_run(store):
    folder = trained(store)
    later = TrackedStore(store.root, "20260102-000000-bbbbbbbb")
    later.steps = [dict(store.steps[0], action="done")]
    later.write()
    ship(store.root)
    light = next(r for r in runs(store.root, "train") if r.data.tags["pipeline"] == later.uid)
    assert light.data.tags["reused_from"] == f"{store.uid}/train"
    assert light.info.status == "FINISHED" and light.data.params["train.lr"] == "0.1"
    assert len(client(store.root).get_metric_history(light.info.run_id, "loss")) == 1
    assert folder.name.startswith("train-")


def test_redoing_a_step_leaves_the_first_run_as_it_was(store):
    folder = trained(store)
    ship(store.root)
    shutil.move(folder / "manifest.json", folder / "attempts" / "0001" / "manifest.json")
    later = TrackedStore(store.root, "20260102-000000-bbbbbbbb")
    later.steps = [dict(store.steps[0])]
    later.write()
    second = later.attempt(folder, 2, at=T0 + 200)
    lines(second / "journal.jsonl", [(i, {"loss": 7.0}) for i in range(5)], int(T0 * 1000) + 201_000)
    later.done(folder, 2, at=T0 + 300)
    ship(store.root)
    by_pipeline = {r.data.tags["pipeline"]: r for r in runs(store.root, "train")}
    old, new = by_pipeline[store.uid], by_pipeline[later.uid]
    loss = client(store.root).get_metric_history
    assert len(loss(old.info.run_id, "loss")) == 30 and old.info.end_time == int((T0 + 100) * 1000)
    assert [m.value for m in loss(new.info.run_id, "loss")] == [7.0] * 5


def test_a_step_deleted_by_gc_keeps_its_run(store):
    folder = trained(store)
    ship(store.root)
    shutil.rmtree(folder)
    ship(store.root)
    assert {r.info.status for r in runs(store.root)} == {"FINISHED"}


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "ftp://host/x"])
def test_an_address_mlflow_cannot_serve_is_one_line(store, uri):
    trained(store)
    with pytest.raises(TrackingError, match=r"^tracking\.uri: .*write null") as caught:
        ship(store.root, uri)
    assert "\n" not in str(caught.value)


def test_an_unreachable_server_is_one_line_and_costs_no_minutes(store):
    trained(store)
    with pytest.raises(
        TrackingError, match=r"^tracking\.uri: http://127\.0\.0\.1:9: cannot be reached; .*maskgit sync"
    ):
        ship(store.root, "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"cannot be reached") as caught:
        ship(store.root, "http://ada:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_two_shippers_on_a_fresh_store_at_once(tmp_path):
    """The first start of an SQLite store is a race in MLflow; under our lock it is none."""
    store = TrackedStore(tmp_path)
    for number in range(4):
        trained(store, f"train{number}", seed=number)
    code = "import sys; from experiments.tracking.mlflow_store import ship; print(ship(sys.argv[1]).points)"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sent = [int((child.communicate(timeout=300)[0] or "-1").strip()) for child in children]
    assert sorted(sent) == [0, 120] and all(child.returncode == 0 for child in children)
    assert sorted(r.info.run_name for r in runs(tmp_path)) == ["toy 20260101-000000", *(f"train{i}" for i in range(4))]
    assert all(len(history(tmp_path, f"train{i}", "loss")) == 30 for i in range(4))


def test_an_execution_is_known_by_what_was_asked_and_by_its_best_score(store):
    evaluated(store, [], name="evaluate[1]", value=2.5, params={"lr": 1})
    evaluated(store, [], name="evaluate[2]", value=1.5, params={"lr": 2})
    store.write(overrides=["experiment=toy", "train.lr=1,2", "paths.store=/x"])
    ship(store.root)
    parent = next(r for r in runs(store.root) if r.data.tags["stage"] == "pipeline")
    assert parent.info.run_name == f"toy train.lr=1,2 {store.uid[:15]}" and parent.data.metrics == {"fid": 1.5}


def test_params_leave_out_defaults_but_keep_what_is_swept():
    from experiments.store.documents import Request
    from experiments.store.records import PipelineStep
    from experiments.tracking.params import asked_params

    sampler = {"name": "confidence", "num_steps": 12, "guidance_scale": 3.0}
    request = Request(
        fingerprint="f", stage="sample", module="experiments.stages.sample", version=1, kind="samples",
        config={"num_samples": 7, "seed": 0, "sampler": sampler},
        modules={"sampler": "maskgit_core.samplers.confidence"},
    )  # fmt: skip
    entry = PipelineStep(name="sample", step="sample", stage="sample", kind="samples", fingerprint="f", folder="x",
                         params={"sampler.num_steps": 12})  # fmt: skip
    found = asked_params(entry, request)
    assert found["sampler.guidance_scale"] == "3.0" and found["sampler.num_steps"] == "12"
    assert found["sampler.name"] == "confidence" and "sample.seed" not in found


def test_a_trained_model_is_registered_with_its_scores(store):
    trained(store)
    evaluated(store, [store.steps[0]["fingerprint"]])
    ship(store.root)
    (version,) = client(store.root).search_model_versions("name = 'toy.train'")
    assert version.tags["fid"] == "2.5" and version.tags["fingerprint"] == store.steps[0]["fingerprint"]
    ship(store.root)
    assert len(client(store.root).search_model_versions("name = 'toy.train'")) == 1
    tags = client(store.root).get_experiment_by_name("toy").tags
    assert tags["mlflow.note.content"] == "a toy" and tags["mlflow.sharedViewState.maskgit"].startswith("deflate;")
