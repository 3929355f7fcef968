"""Real tracking servers that come and go: nothing waits for them, nothing is lost, nothing arrives twice."""

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lossy_proxy import LossyProxy
from mlflow_server import POSTGRES, Postgres, Server, empty_database, free_port
from tracked_store import T0, TrackedStore, lines, write_scores

from experiments.store.documents import Launch
from experiments.store.journal import read_points
from experiments.tracking.live import Forwarder, live_uri
from experiments.tracking.mlflow_store import ship
from maskgit_core.errors import TrackingError

ROOT = Path(__file__).resolve().parents[3]
PYTHON = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

#: A step: claims its folder, journals two metrics every `pause` seconds until step `points`, ends like a job, and says
#: what a point cost its thread (CPU seconds, so that a busy machine counts for nothing).
STEP = """
import sys, time
from pathlib import Path
from maskgit_core.files import write_json
from experiments.running.attempt import Attempt
from experiments.store.claims import Claim
from experiments.store.documents import Launch
from experiments.tracking.live import Forwarder
folder, number, start, points, pause = Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
claim = Claim(folder)
claim.take()
attempt = Attempt(folder, number)
write_json(attempt.own / "start.json", {"time": time.time(), "pipeline": sys.argv[6]})
launch = Launch(name="train", step="train", experiment="toy", pipeline=sys.argv[6])
forwarder = Forwarder.start(folder, launch) if "live" in sys.argv else None
if start:
    attempt.resumed_at(start)
cost, logged = 0.0, 0
for i in range(start, points):
    began = time.thread_time()
    attempt.log({"loss": float(i), "lr": 1.0 / (i + 1)}, step=i)
    cost, logged = cost + time.thread_time() - began, logged + 2
    time.sleep(pause)
    if (folder / "enough").exists():
        break
attempt.close()
write_json(attempt.own / "end.json", {"state": "stopped", "time": time.time()})
claim.release()
print(cost / max(logged, 1), flush=True)
if forwarder:
    forwarder.finish(60.0)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database(tmp_path_factory), folder / "server.db")
    with Server(folder) as running:
        yield running


@pytest.fixture
def store(tmp_path, server):
    if server.process is None:  # an earlier drill failed while it was down
        server.start()
    return a_store(tmp_path, server)


def a_store(tmp_path, server):
    """A store of its own experiment, whose jobs ship live to the server."""
    made = TrackedStore(tmp_path / "store", experiment=f"e{tmp_path.name}")
    made.settings = {"tracking": {"uri": server.uri}}
    return made


def train_step(store: TrackedStore) -> Path:
    folder = store.step("train", "train", "model", {"lr": 0.1})
    return folder


def begin(folder, store, number=1, start=0, points=100, pause=0.0, *words):
    arguments = [str(folder), str(number), str(start), str(points), str(pause), store.uid, *words]
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, *arguments], cwd=ROOT, env=PYTHON, stdout=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    while STARTED:
        STARTED.pop().kill()


def client(server):
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


def runs(server, store, name=None):
    c = client(server)
    found = c.search_runs([c.get_experiment_by_name(store.experiment).experiment_id])
    return [r for r in found if name in (None, r.info.run_name)]


def histories(server, store, name="train"):
    (run,) = runs(server, store, name)
    c = client(server)
    return {key: [(m.step, m.value, m.timestamp) for m in c.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics}  # fmt: skip


def journaled(folder):
    found: dict = {}
    for point in read_points(folder):
        found.setdefault(point.metric, []).append((point.step, point.value, point.time))
    return found


def test_everything_arrives_over_http_also_lineage_models_and_files(store, server):
    folder = train_step(store)
    own = store.attempt(folder)
    special = {"nan": float("nan"), "inf": float("inf"), "loss": 1.0}
    lines(own / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(1200)] + [(9000, special)], int(T0 * 1000))
    (own / "files" / "grid.png").write_bytes(b"png")
    data = {"name": "photos", "digest": "d" * 64, "path": "/data", "context": "training"}
    store.done(folder, shown=["grid.png"], datasets=[data])
    scored = store.step("evaluate", "evaluate", "scores", {}, [store.steps[0]["fingerprint"]])
    write_scores(store.attempt(scored) / "files", "p", {}, fid=2.5)
    store.done(scored)
    assert ship(store.root, server.uri).points == 1203
    (train,), (evaluate,) = runs(server, store, "train"), runs(server, store, "evaluate")
    assert len(histories(server, store)["loss"]) == 1201
    assert train.data.tags["mlflow.parentRunId"] == evaluate.data.tags["mlflow.parentRunId"]
    assert {f.path for f in client(server).list_artifacts(train.info.run_id)} >= {"grid.png", "outputs.json"}
    (model,) = client(server).search_logged_models([train.info.experiment_id], filter_string="metrics.fid < 3")
    assert model.source_run_id == train.info.run_id
    assert train.inputs.dataset_inputs[0].dataset.name == "photos"
    assert live_uri(store.root, store.uid) == server.uri


def drill_server(store, server, kills, seed):
    """The server is killed at random points of one training and brought back, again and again; the job ships live."""
    chance = random.Random(seed)
    folder = train_step(store)
    step = begin(folder, store, 1, 0, 10**6, 0.01, "live")
    wait_for(lambda: journaled(folder))
    for _ in range(kills):
        time.sleep(chance.uniform(0.5, 6.0))
        server.kill()
        before = len(journaled(folder)["loss"])
        wait_for(lambda before=before: len(journaled(folder)["loss"]) > before + 100)  # training goes on meanwhile
        server.start()
    (folder / "enough").write_text("")
    cost = float(step.stdout.readline())
    assert step.wait(180) == 0
    ship(store.root, server.uri)
    found, there = histories(server, store), journaled(folder)
    tell(f"server killed {kills} times: {len(there['loss'])} points journaled, {len(found['loss'])} in MLflow, "
         f"{len(set(found['loss']))} of them different; {cost * 1e6:.1f} us of the step's thread a metric")  # fmt: skip
    return found, there, cost


def tell(text):
    """A line for whoever reads the drills' log (`DRILL_LOG` names a file)."""
    print(text)
    if "DRILL_LOG" in os.environ:
        with open(os.environ["DRILL_LOG"], "a") as log:
            log.write(text + "\n")


def wait_for(holds, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_that_dies_while_training_costs_nothing(store, server, kills):
    found, there, cost = drill_server(store, server, kills, kills)
    assert found == there
    assert cost < 50e-6
    assert runs(server, store, "train")[0].info.status == "KILLED"  # it was stopped, as it says


#: A forwarder as a job starts it, every 0.05 s, once it has said that it has all it needs to begin.
FORWARDER = """
import os, sys
from pathlib import Path
import mlflow
from experiments.tracking.live import forward
print("ready", flush=True)
forward(Path(sys.argv[1]), sys.argv[2], sys.argv[3], "train", os.getppid(), 0.05)
"""


def drill_forwarder(store, server, kills, seed):
    """Forwarders are killed at random moments while a long journal grows; `sync` ships what is left."""
    chance = random.Random(seed)
    folder, until = train_step(store), 4000 + 500 * kills
    begin(folder, store, 1, 0, 4000, 0.0).wait(60)
    second = begin(folder, store, 2, 3500, until, 0.005)
    arrived = []
    for _ in range(kills):
        arguments = [str(store.root), server.uri, store.uid]
        child = subprocess.Popen(
            [sys.executable, "-c", FORWARDER, *arguments], cwd=ROOT, env=PYTHON, stdout=subprocess.PIPE, text=True
        )
        STARTED.append(child)
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 3.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        arrived.append(sum(map(len, histories(server, store).values())) if runs_there(server, store) else 0)
    second.wait(300)
    ship(store.root, server.uri)
    found = histories(server, store)["loss"]
    tell(f"forwarder killed {kills} times: {until} points journaled, {len(found)} in MLflow, {len(set(found))} of them "
         f"different; there after each kill: {arrived}")  # fmt: skip
    return found, until


def runs_there(server, store):
    c = client(server)
    return c.get_experiment_by_name(store.experiment) is not None and runs(server, store, "train")


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_forwarders_lose_and_double_nothing(store, server, kills):
    found, until = drill_forwarder(store, server, kills, kills)
    assert [(step, value) for step, value, _ in found] == [(i, float(i)) for i in range(until)]


def test_a_killed_step_is_shown_as_killed_and_its_successor_goes_on_in_the_same_run(store, server):
    folder = train_step(store)
    step = begin(folder, store, 1, 0, 10_000, 0.005, "live")
    wait_for(lambda: len(journaled(folder).get("loss", [])) > 200)
    step.send_signal(signal.SIGKILL)
    step.wait()
    ship(store.root, server.uri)  # what `sync`, `ui` and the orphaned forwarder do
    assert runs(server, store, "train")[0].info.status == "KILLED"
    shipped = len(histories(server, store)["loss"])
    again = begin(folder, store, 2, shipped // 2, shipped + 50, 0.0, "live")
    assert again.wait(120) == 0
    ship(store.root, server.uri)
    assert [s for s, _, _ in histories(server, store)["loss"]] == list(range(shipped + 50))
    assert runs(server, store, "train")[0].data.tags["attempts"] == "2"


def ship_through(proxy, store, tries=60):
    """Ships until nothing fails any more, as `sync --follow` does."""
    for _ in range(tries):
        try:
            return ship(store.root, proxy.uri)
        except TrackingError:
            continue
    raise AssertionError(f"{tries} rounds were not enough")


def scored_training(store, points):
    folder = train_step(store)
    lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(points)], int(T0 * 1000))
    store.done(folder)
    scored = store.step("evaluate", "evaluate", "scores", {}, [store.steps[0]["fingerprint"]])
    write_scores(store.attempt(scored) / "files", "p", {}, fid=2.5)
    store.done(scored)
    return folder


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))])
def test_replies_lost_after_the_server_committed_double_nothing(store, server, seed):
    folder = scored_training(store, 3000)
    with LossyProxy(server.port, 0.3, seed) as proxy:
        ship_through(proxy, store)
        shutil.rmtree(store.root / "tracking")  # what is remembered of it is lost as well
        ship_through(proxy, store)
    kinds = {path.rpartition("/")[2] for path, count in proxy.lost.items() if count}
    assert {"create", "log-batch", "update"} <= kinds and sum(proxy.lost.values()) > 6
    assert histories(server, store) == journaled(folder)
    assert histories(server, store, "evaluate")["fid"] == [(0, 2.5, int((T0 + 100) * 1000))]
    assert sorted(r.info.run_name for r in runs(server, store)) == sorted(["evaluate", store.parent_name, "train"])
    assert {r.info.status for r in runs(server, store)} == {"FINISHED"}
    experiment = runs(server, store)[0].info.experiment_id
    assert client(server).search_logged_models([experiment], filter_string="metrics.fid < 3")


SHIP = "import sys; from experiments.tracking.mlflow_store import ship; ship(sys.argv[1], sys.argv[2])"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["one store", "copies on two machines"])
def test_two_forwarders_on_one_journal(store, server, tmp_path, where):
    """Both ship the same growing journal at once, one of them through a proxy that loses replies."""
    folder = train_step(store)
    journal = store.attempt(folder) / "journal.jsonl"
    lines(journal, [(i, {"loss": float(i)}) for i in range(4000)], int(T0 * 1000))
    other = store.root
    if where != "one store":
        other = tmp_path / "copy"
        shutil.copytree(store.root, other)
    with LossyProxy(server.port, 0.1, 7) as proxy:
        children = [
            subprocess.Popen([sys.executable, "-c", SHIP, str(root), uri], cwd=ROOT, env=PYTHON)
            for root, uri in ((store.root, server.uri), (other, proxy.uri))
        ]
        STARTED.extend(children)
        time.sleep(2.0)
        lines(journal, [(i, {"loss": float(i)}) for i in range(4000, 5000)], int(T0 * 1000) + 5000)
        for child in children:
            child.wait(180)  # one may have failed for a lost reply; the next round ships what is left
        store.done(folder)
        ship_through(proxy, store)
    assert histories(server, store) == journaled(folder)
    assert len(runs(server, store)) == 2


#: Waits for the others, then begins: a step, or the forwarder of one.
TOGETHER = """
import sys, time
from pathlib import Path
if sys.argv[1] == "step":
    from experiments.running.attempt import Attempt as begin
else:
    from experiments.tracking.mlflow_store import ship as begin
    import mlflow
Path(sys.argv[3]).write_text("")
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
if sys.argv[1] == "step":
    attempt = begin(Path(sys.argv[4]))
    for i in range(20):
        attempt.log({"loss": float(i)}, step=i)
    attempt.close()
else:
    root, uri, pipeline, step = sys.argv[4:]
    begin(Path(root), uri, pipelines=[pipeline], steps=[step], whole=False)
"""


def all_together(place, kind, argument_lists):
    """Real processes that have imported all they need and begin at the same moment; their exit codes."""
    place.mkdir()
    signs = [place / str(number) for number in range(len(argument_lists))]
    children = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, kind, str(place / "go"), str(sign), *arguments], cwd=ROOT,
                         env=PYTHON)
        for sign, arguments in zip(signs, argument_lists, strict=True)
    ]  # fmt: skip
    STARTED.extend(children)
    wait_for(lambda: all(sign.exists() for sign in signs), 600.0)
    (place / "go").write_text("")
    return [child.wait(600) for child in children]


@pytest.mark.parametrize("count", [6, pytest.param(64, marks=pytest.mark.slow)])
def test_steps_that_start_at_the_same_moment_on_a_fresh_store(tmp_path, count):
    """The default, embedded store: no step opens it, so nothing can go wrong; the first `sync` makes it."""
    store = TrackedStore(tmp_path / "store", experiment="many")
    folders = [store.step(f"train{number}", "train", "model", {"seed": number}) for number in range(count)]
    for folder in folders:
        store.attempt(folder)
    assert all_together(tmp_path / "signs", "step", [[str(folder)] for folder in folders]) == [0] * count
    assert not (store.root / "mlflow.db").exists()
    assert ship(store.root).points == 20 * count
    tell(f"{count} steps began at one moment: {20 * count} points journaled and shipped")


@pytest.mark.slow
def test_64_forwarders_that_meet_on_a_fresh_server(tmp_path):
    """64 live forwarders, each a process, ship 64 steps of one execution to a server that has seen nothing yet."""
    with Server(tmp_path / "server") as server:
        store = TrackedStore(tmp_path / "store", experiment="many")
        for number in range(64):
            folder = store.step(f"train{number}", "train", "model", {"seed": number})
            lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": 1.0}) for i in range(20)], int(T0 * 1000))
        calls = [[str(store.root), server.uri, store.uid, f"train{number}"] for number in range(64)]
        assert all_together(tmp_path / "signs", "forwarder", calls) == [0] * 64
        found = runs(server, store)
        tell(f"64 forwarders met on a fresh server: {len(found)} runs, {len({r.info.run_name for r in found})} names")
        assert len(found) == 65 and len({r.data.tags.get("mlflow.parentRunId") for r in found}) == 2
        assert all(len(histories(server, store, f"train{i}")["loss"]) == 20 for i in range(64))


def test_a_job_without_a_tracking_server_starts_no_forwarder(tmp_path):
    store = TrackedStore(tmp_path)
    folder = store.step("train", "train", "model", {})
    launch = Launch(name="train", step="train", experiment="x", pipeline=store.uid)
    assert Forwarder.start(folder, launch) is None
    store.write(settings={"tracking": {"uri": f"sqlite:///{tmp_path}/x.db"}})
    assert Forwarder.start(folder, launch) is None
    assert not (folder / "logs").exists()


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES or importlib.util.find_spec("psycopg2") is None, reason="no PostgreSQL or no psycopg2")
def test_on_postgresql(tmp_path):
    with Postgres() as database, Server(tmp_path / "server", database.uri) as server:
        store = TrackedStore(tmp_path / "store", experiment="on-postgres")
        folder = scored_training(store, 5000)
        with LossyProxy(server.port, 0.3, 0) as proxy:
            ship_through(proxy, store)
        assert sum(proxy.lost.values()) > 6
        assert histories(server, store) == journaled(folder)
        assert runs(server, store, "train")[0].info.status == "FINISHED"


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="MLflow's auth app needs Flask-WTF")
@pytest.mark.slow
def test_wrong_credentials_are_one_line_and_right_ones_work(tmp_path, monkeypatch, maskgit):
    """A server with basic auth, through the command itself."""
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "for tests")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a long pass phrase")
    with Server(tmp_path / "server", basic_auth=True) as server:
        store = TrackedStore(tmp_path / "store")
        folder = store.step("train", "train", "model", {})
        store.attempt(folder)
        store.done(folder)

        def sync(password):
            user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
            return maskgit("sync", "--store", str(store.root), "--uri", server.uri, env=user)

        wrong = sync("wrong")
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1, wrong.stderr
        assert wrong.stderr.startswith(f"error: tracking.uri: {server.uri}: refuses these credentials; set MLFLOW_TRA")
        right = sync("a long pass phrase")
        assert right.returncode == 0 and right.stdout.startswith("2 of 2 runs brought up to date"), right.stderr


def test_a_host_the_server_does_not_allow_is_one_line(store, server, monkeypatch):
    train_step(store)
    real = socket.getaddrinfo
    known = {"tracker.lab.org": "127.0.0.1"}  # a name of this machine that the server was not told of
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real(known.get(host, host), *rest, **more))
    with pytest.raises(TrackingError, match=r"does not allow this host name or user; .*--allowed-hosts"):
        ship(store.root, server.uri.replace("127.0.0.1", "tracker.lab.org"))


def test_the_ui_command_serves_the_store_on_loopback_and_ends_cleanly(tmp_path, tmp_path_factory):
    import requests

    store = TrackedStore(tmp_path / "store")
    store.write()
    shutil.copy(empty_database(tmp_path_factory), store.root / "mlflow.db")
    folder = store.step("train", "train", "model", {})
    store.attempt(folder)
    store.done(folder)
    port = free_port()
    command = [sys.executable, "-m", "experiments.cli", "ui", "--store", str(store.root), "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, env=PYTHON, stdout=subprocess.PIPE, text=True)
    STARTED.append(server)
    for line in server.stdout:
        if f"http://127.0.0.1:{port}" in line:
            break
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=5"
    assert "toy" in requests.get(address, timeout=60).text
    assert requests.get(address, headers={"Host": "evil.example.org"}, timeout=60).status_code == 403
    busy = subprocess.run([*command, "--no-sync"], cwd=tmp_path, env=PYTHON, capture_output=True, text=True, timeout=60)
    assert busy.returncode == 2 and busy.stderr.startswith("error: --port: ") and busy.stderr.count("\n") == 1
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)
