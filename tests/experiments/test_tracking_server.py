"""Real tracking servers that come and go: nothing waits for them, nothing is lost, nothing arrives twice."""

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow_server import POSTGRES, Postgres, Server, free_port
from tracked_store import T0, TrackedStore, lines, write_scores

from experiments.forwarding import Forwarder, live_uri
from experiments.journal import read_points
from experiments.tracking import ship
from maskgit_core.errors import TrackingError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

#: A step: claims its folder, journals `points` points, one every `pause` seconds, ends like a job.
STEP = """
import sys, time
from dataclasses import asdict
from pathlib import Path
from experiments.atomic import write_json
from experiments.attempt import Attempt
from experiments.claims import Owner
from experiments.forwarding import Forwarder
folder, number, start, points, pause = Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
write_json(folder / "claim.json", {**asdict(Owner.me()), "token": "x"})
attempt = Attempt(folder, number)
write_json(attempt.own / "start.json", {"time": time.time(), "pipeline": sys.argv[6]})
forwarder = Forwarder.start(folder, {"pipeline": sys.argv[6], "name": "train"}) if "live" in sys.argv else None
if start:
    attempt.resumed_at(start)
for i in range(start, points):
    attempt.log({"loss": float(i), "lr": 1.0 / (i + 1)}, step=i)
    time.sleep(pause)
    if (folder / "enough").exists():
        break
attempt.close()
write_json(attempt.own / "end.json", {"state": "stopped", "time": time.time()})
(folder / "claim.json").unlink()
print("trained", flush=True)
if forwarder:
    forwarder.finish(60.0)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as running:
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
    assert step.stdout.readline() == "trained\n"
    assert step.wait(180) == 0
    ship(store.root, server.uri)
    assert histories(server, store) == journaled(folder)
    assert runs(server, store, "train")[0].info.status == "KILLED"  # it was stopped, as it says


def wait_for(holds, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_server_that_dies_while_training_costs_nothing(store, server):
    drill_server(store, server, 1, 0)


@pytest.mark.slow
def test_a_server_that_dies_twenty_times(store, server):
    drill_server(store, server, 20, 1)


def drill_forwarder(store, server, kills, seed):
    """Forwarders are killed at random moments while a long journal grows; the last one is left alone."""
    chance = random.Random(seed)
    folder = train_step(store)
    first = begin(folder, store, 1, 0, 4000, 0.0)
    first.wait(60)
    second = begin(folder, store, 2, 3500, 4000 + 500 * kills, 0.005)
    for _ in range(kills):
        code = "import sys; from experiments.forwarding import forward; from pathlib import Path; import os;"
        code += "forward(Path(sys.argv[1]), sys.argv[2], sys.argv[3], 'train', os.getppid(), 0.05)"
        arguments = [str(store.root), server.uri, store.uid]
        child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, env=PYTHON)
        time.sleep(chance.uniform(3.0, 7.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
    second.wait(300)
    ship(store.root, server.uri)
    found = histories(server, store)["loss"]
    assert [(step, value) for step, value, _ in found] == [(i, float(i)) for i in range(4000 + 500 * kills)]


@pytest.mark.slow
def test_killed_forwarders_lose_and_double_nothing(store, server):
    drill_forwarder(store, server, 2, 2)


@pytest.mark.slow
def test_forwarders_killed_twenty_times(store, server):
    drill_forwarder(store, server, 20, 3)


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


class Cutting:
    """A proxy that now and then cuts a reply off: the server has committed, and nobody knows."""

    def __init__(self, port: int, every: int) -> None:
        self.target, self.every, self.count, self.cut = port, every, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                there, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(there,), daemon=True).start()

    def _pass_on(self, there: socket.socket) -> None:
        here = socket.create_connection(("127.0.0.1", self.target))

        def upstream() -> None:
            try:
                while data := there.recv(65536):
                    here.sendall(data)
            except OSError:
                pass

        threading.Thread(target=upstream, daemon=True).start()
        try:
            while data := here.recv(65536):
                self.count += 1
                if self.count % self.every == 0:
                    self.cut += 1
                    break
                there.sendall(data)
        except OSError:
            pass
        for end in (there, here):
            end.close()


@pytest.mark.slow
def test_replies_lost_on_the_way_double_nothing(store, server):
    folder = train_step(store)
    lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(5000)], int(T0 * 1000))
    store.done(folder)
    proxy = Cutting(server.port, 11)
    for _ in range(60):
        try:
            ship(store.root, proxy.uri)
            break
        except TrackingError:
            continue
    proxy.listener.close()
    assert proxy.cut > 1
    ship(store.root, server.uri)
    assert histories(server, store) == journaled(folder)
    assert len(runs(server, store)) == 2


@pytest.mark.slow
def test_two_forwarders_on_one_journal(store, server, tmp_path):
    """Also from copies of the store, where no lock of ours is shared."""
    import shutil

    folder = train_step(store)
    lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(6000)], int(T0 * 1000))
    store.done(folder)
    copy = tmp_path / "copy"
    shutil.copytree(store.root, copy)
    code = "import sys; from experiments.tracking import ship; ship(sys.argv[1], sys.argv[2])"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(root), server.uri], cwd=ROOT, env=PYTHON)
        for root in (store.root, copy)
    ]
    assert [child.wait(180) for child in children] == [0, 0] or ship(store.root, server.uri)
    ship(store.root, server.uri)
    assert histories(server, store) == journaled(folder)


STARTER = """
import sys, threading, time
from pathlib import Path
from experiments.tracking import ship
root, uri, pipeline = sys.argv[1:4]
first, count, at = map(float, sys.argv[4:7])
time.sleep(max(0.0, at - time.time()))
problems = []
def start(number):
    try:
        ship(Path(root), uri, pipelines=[pipeline], steps=[f"train{number}"], whole=False)
    except Exception as error:
        problems.append(repr(error))
threads = [threading.Thread(target=start, args=(int(first) + i,)) for i in range(int(count))]
[t.start() for t in threads]; [t.join() for t in threads]
sys.exit("\\n".join(problems))
"""


@pytest.mark.slow
def test_sixty_four_steps_that_start_at_the_same_moment(tmp_path):
    """64 live forwarders meet on a fresh server, in 4 processes of 16 threads each."""
    with Server(tmp_path / "server") as server:
        store = TrackedStore(tmp_path / "store", experiment="many")
        for number in range(64):
            folder = store.step(f"train{number}", "train", "model", {"seed": number})
            lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": 1.0}) for i in range(20)], int(T0 * 1000))
        arguments = [str(store.root), server.uri, store.uid]
        at = str(time.time() + 15)
        children = [
            subprocess.Popen([sys.executable, "-c", STARTER, *arguments, str(16 * i), "16", at], cwd=ROOT, env=PYTHON)
            for i in range(4)
        ]
        assert [child.wait(300) for child in children] == [0, 0, 0, 0]
        ship(store.root, server.uri)
        found = runs(server, store)
        assert len(found) == 65 and len({r.data.tags.get("mlflow.parentRunId") for r in found}) == 2
        assert all(len(histories(server, store, f"train{i}")["loss"]) == 20 for i in range(64))


def test_a_job_without_a_tracking_server_starts_no_forwarder(tmp_path):
    store = TrackedStore(tmp_path)
    folder = store.step("train", "train", "model", {})
    assert Forwarder.start(folder, {"pipeline": store.uid, "name": "train"}) is None
    store.write(settings={"tracking": {"uri": f"sqlite:///{tmp_path}/x.db"}})
    assert Forwarder.start(folder, {"pipeline": store.uid, "name": "train"}) is None
    assert not (folder / "logs").exists()


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES or importlib.util.find_spec("psycopg2") is None, reason="no PostgreSQL or no psycopg2")
def test_on_postgresql(tmp_path):
    with Postgres() as database, Server(tmp_path / "server", database.uri) as server:
        store = TrackedStore(tmp_path / "store", experiment="on-postgres")
        folder = store.step("train", "train", "model", {"lr": 0.1})
        lines(store.attempt(folder) / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(2500)], int(T0 * 1000))
        store.done(folder)
        proxy = Cutting(server.port, 11)
        for _ in range(40):
            try:
                ship(store.root, proxy.uri)
                break
            except TrackingError:
                continue
        ship(store.root, server.uri)
        assert histories(server, store) == journaled(folder)
        assert runs(server, store, "train")[0].info.status == "FINISHED"


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="MLflow's auth app needs Flask-WTF")
@pytest.mark.slow
def test_wrong_credentials_are_one_line_and_right_ones_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "for tests")
    with Server(tmp_path / "server", basic_auth=True) as server:
        store = TrackedStore(tmp_path / "store")
        folder = store.step("train", "train", "model", {})
        store.attempt(folder)
        store.done(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(TrackingError, match="refuses these credentials; set MLFLOW_TRACKING_USERNAME") as caught:
            ship(store.root, server.uri)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password1234")
        assert ship(store.root, server.uri).touched == 2


def test_a_host_the_server_does_not_allow_is_one_line(store, server, monkeypatch):
    train_step(store)
    real = socket.getaddrinfo
    known = {"tracker.lab.org": "127.0.0.1"}  # a name of this machine that the server was not told of
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real(known.get(host, host), *rest, **more))
    with pytest.raises(TrackingError, match=r"does not allow this host name or user; .*--allowed-hosts"):
        ship(store.root, server.uri.replace("127.0.0.1", "tracker.lab.org"))


def test_the_ui_command_serves_the_store_on_loopback_and_ends_cleanly(tmp_path):
    import requests

    store = TrackedStore(tmp_path / "store")
    folder = store.step("train", "train", "model", {})
    store.attempt(folder)
    store.done(folder)
    port = free_port()
    command = [sys.executable, "-m", "experiments.cli", "ui", "--store", str(store.root), "--port", str(port)]
    window = subprocess.Popen(command, cwd=tmp_path, env=PYTHON, stdout=subprocess.PIPE, text=True)
    STARTED.append(window)
    for line in window.stdout:
        if f"http://127.0.0.1:{port}" in line:
            break
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=5"
    assert "toy" in requests.get(address, timeout=60).text
    assert requests.get(address, headers={"Host": "evil.example.org"}, timeout=60).status_code == 403
    busy = subprocess.run([*command, "--no-sync"], cwd=tmp_path, env=PYTHON, capture_output=True, text=True, timeout=60)
    assert busy.returncode == 2 and busy.stderr.startswith("error: --port: ") and busy.stderr.count("\n") == 1
    window.send_signal(signal.SIGINT)
    assert window.wait(60) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=5)
