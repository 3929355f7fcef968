"""The store's MLflow database survives kills and damage; passwords stay in the environment; a group shares it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LAB, ROOT
from tracked_store import TrackedStore, lines

from experiments.cli import main
from experiments.store.frozen_code import looks_secret
from experiments.tracking.embedded import TABLES, damage
from experiments.tracking.mlflow_store import ship

PASSWORD = "s3cret-pa55"
URI = f"http://ada:{PASSWORD}@tracker.example:5000"


@pytest.fixture
def store(tmp_path: Path) -> TrackedStore:
    made = TrackedStore(tmp_path / "store")
    folder = made.step("train", "train", "model", {"lr": 0.1})
    lines(made.attempt(folder) / "journal.jsonl", [(i, {"loss": float(i)}) for i in range(20)])
    made.done(folder)
    return made


def test_a_half_made_or_damaged_database_is_set_aside_and_made_anew(store):
    path = store.root / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE experiments (x)")
    assert "was killed" in (damage(path) or "")
    report = ship(store.root)
    assert report.points == 20 and "set aside as mlflow.db.damaged-" in report.problems[0] and damage(path) is None
    assert ship(store.root).problems == []
    path.write_bytes(path.read_bytes()[:5000])
    assert ship(store.root).points == 20 and damage(path) is None
    path.write_bytes(b"no database at all" * 100)
    assert ship(store.root).points == 20 and damage(path) is None


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE metrics SET value = 7.5 WHERE step = 3", "loss of"),
        ("UPDATE metrics SET key = 'lost' WHERE step = 3", "no journal has it"),
        ("UPDATE latest_metrics SET value = 7.5", "is none of its points"),
        ("DELETE FROM metrics WHERE step < 5", "5 points of"),
    ],
)
def test_points_of_the_database_that_are_not_the_journals_are_found(store, capsys, statement, told):
    """SQLite has no checksums: a flipped bit in a value was a wrong number that nothing named."""
    ship(store.root)
    at = ["verify", "--deep", "--store", str(store.root)]
    assert main(at) == 0
    with sqlite3.connect(store.root / "mlflow.db") as database:
        database.execute(statement)
    capsys.readouterr()
    assert main(at) == 1
    error = capsys.readouterr().err
    assert told in error and "maskgit sync makes it anew" in error and error.count("\n") == 1
    (store.root / "mlflow.db").unlink()
    assert main(["sync", "--store", str(store.root)]) == 0 and main(at) == 0


def test_a_transaction_that_a_kill_cut_is_rolled_back_not_taken_for_damage(tmp_path):
    """A killed `sync` leaves SQLite's journal beside a half-written database; what people noted in it must stay."""
    path = tmp_path / "mlflow.db"
    killed = f"""
import os, sqlite3
database = sqlite3.connect({str(path)!r}, isolation_level=None)
for table in {sorted(TABLES)!r}:
    database.execute(f"CREATE TABLE {{table}} (value TEXT)")
database.execute("INSERT INTO alembic_version VALUES ('1')")
database.executemany("INSERT INTO tags VALUES (?)", [("noted" * 200,)] * 400)
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN")
database.execute("UPDATE tags SET value = 'x' || value")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
    assert path.with_name("mlflow.db-journal").stat().st_size > 0, "nothing was cut"
    assert damage(path) is None
    assert sqlite3.connect(path).execute("SELECT count(*) FROM tags WHERE value LIKE 'noted%'").fetchone() == (400,)


@pytest.mark.slow
def test_a_kill_during_the_first_ship_harms_nothing(store, tmp_path):
    for number in range(13):
        root = tmp_path / f"killed-{number}"
        shutil.copytree(store.root, root)
        call = [sys.executable, "-m", "experiments.cli", "sync", "--store", str(root)]
        process = subprocess.Popen(call, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        time.sleep(0.5 + 0.5 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        report = ship(root)
        assert report.problems == [] and damage(root / "mlflow.db") is None


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_group_may_read_write_and_enter_whatever_the_umask(store, mask):
    store.root.chmod(0o2775)
    before = os.umask(mask)
    try:
        code = f"from experiments.tracking.mlflow_store import ship; ship({str(store.root)!r})"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    finally:
        os.umask(before)
    mode = (store.root / "mlflow.db").stat().st_mode
    assert mode & stat.S_IRGRP and mode & stat.S_IWGRP
    for folder in ("tracking", "mlflow-artifacts"):
        assert (store.root / folder).stat().st_mode & stat.S_IRWXG == stat.S_IRWXG


def test_a_password_in_an_address_is_refused_and_never_printed(tmp_path, capsys):
    arguments = ["experiment=chain", f"paths.store={tmp_path}", "launcher=inline", "--config-dir", str(LAB)]
    for verb in ("run", "plan"):
        assert main([verb, *arguments, f"tracking.uri={URI}"]) == 2
        text = "".join(capsys.readouterr())
        assert PASSWORD not in text and "MLFLOW_TRACKING_PASSWORD" in text and text.count("\n") == 1
    assert main(["config", "experiment=chain", f"tracking.uri={URI}", "--config-dir", str(LAB)]) == 0
    shown = "".join(capsys.readouterr())
    assert PASSWORD not in shown and "uri: http://ada:***@tracker.example:5000" in shown
    for verb in ("sync", "ui"):
        assert main([verb, "--store", str(tmp_path), "--uri", f"postgresql://a:{PASSWORD}@h/db"]) == 2
        assert PASSWORD not in "".join(capsys.readouterr())
    assert not list(tmp_path.rglob("*.json"))


def test_an_address_of_the_environment_is_recorded_as_such(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{PASSWORD}@127.0.0.1:9")
    arguments = ["experiment=chain", f"paths.store={tmp_path}", "launcher=inline", "--config-dir", str(LAB)]
    assert main(["run", *arguments, "tracking.uri=env"]) == 0
    assert PASSWORD not in "".join(capsys.readouterr())
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert texts and not any(PASSWORD in text for text in texts)


def test_records_of_earlier_releases_are_shipped_without_their_passwords(store):
    store.settings = {"tracking": {"uri": URI}}
    store.write(command=f"maskgit run tracking.uri={URI}")
    ship(store.root)
    assert PASSWORD.encode() not in (store.root / "mlflow.db").read_bytes()
    artifacts = [path for path in (store.root / "mlflow-artifacts").rglob("*") if path.is_file()]
    assert artifacts and not any(PASSWORD in path.read_text(errors="replace") for path in artifacts)


def test_files_that_look_like_secrets_are_not_frozen():
    assert all(map(looks_secret, ("conf/secrets.yaml", "a/my_credentials.json", "key.pem", ".netrc", "x/.env")))
    assert not any(map(looks_secret, ("experiments/stages/cache_tokens.py", "maskgit_core/tokenizers/vq.py", "a.yaml")))


def test_a_database_on_a_failing_disk_is_one_line(store, monkeypatch, capfd):
    """MLflow and SQLAlchemy log tracebacks of their own over an error of the disk."""
    import sqlalchemy
    from sqlalchemy.engine.default import DefaultDialect

    assert main(["sync", "--store", str(store.root)]) == 0
    lines(store.attempt(store.root / store.steps[0]["folder"], 2) / "journal.jsonl", [(20, {"loss": 1.0})])

    def fail(self: object, connection: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(DefaultDialect, "do_commit", fail)
    capfd.readouterr()
    assert sqlalchemy.__version__ and main(["sync", "--store", str(store.root)]) == 2
    text = "".join(capfd.readouterr())
    assert "Traceback" not in text and text.count("\n") == 1 and "disk I/O error" in text
