"""Bad input about tracking and tables, through the real command: one line, exit code 2, nothing written."""

import json
import shutil

import pytest
from conftest import LAB
from mlflow_server import empty_database

from experiments.tracking.mlflow_store import ship

TABLE = {
    "source": "Somebody et al., Table 1",
    "columns": {"fid": {"metric": "fid", "protocol": "adm"}},
    "rows": [{"name": "Theirs", "published": {"fid": 6.18}}],
}


def refusal(done) -> str:
    """The one line of a request that was refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"columns": {"fid": {"metric": "fidd", "protocol": "adm"}}},
            "error: table mine.columns.fid.metric: there is no metric 'fidd'; did you mean fid?",
        ),
        (
            {"columns": {"fid": {"metric": "fid", "protocol": "admm"}}},
            "error: table mine.columns.fid.protocol: there is no protocol 'admm'; did you mean adm?",
        ),
        ({"source": None}, "error: table mine.rows[0].published.fid: has no source; add source"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(maskgit, tmp_path, change, said):
    (tmp_path / "mine" / "table").mkdir(parents=True)
    (tmp_path / "mine" / "table" / "mine.yaml").write_text(json.dumps({**TABLE, **change}))  # JSON is YAML
    assert refusal(maskgit("table", "mine", "--config-dir", str(tmp_path / "mine"))).startswith(said)


def test_an_unreachable_server_is_one_line(maskgit, store):
    line = refusal(maskgit("sync", "--uri", "http://127.0.0.1:9"))
    assert line.startswith("error: tracking.uri: http://127.0.0.1:9: cannot be reached; start the server")
    line = refusal(maskgit("sync", "--uri", "http://ada:secret@127.0.0.1:9"))
    assert line.startswith("error: tracking.uri: http://ada:***@127.0.0.1:9: a password here would be recorded")
    assert not list(store.glob("*/*/note.json")) and "secret" not in line


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host/x"])
def test_an_address_that_cannot_be_used_is_refused_before_anything_runs(maskgit, store, uri):
    line = refusal(maskgit("run", "experiment=chain", f"tracking.uri={uri}", "--config-dir", str(LAB)))
    assert line.startswith(f"error: tracking.uri: {uri}: cannot be used; write null (SQLite in the store), http://")
    assert not store.exists()


def test_a_server_that_is_away_never_fails_a_run(maskgit, store):
    """The work is done and its numbers are on disk; what could not be shipped is said."""
    away = "tracking.uri=http://127.0.0.1:9"
    done = maskgit("run", "experiment=chain", away, "launcher=inline", "--config-dir", str(LAB))
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stderr and "maskgit sync ships them" in done.stderr
    assert len(list(store.glob("*/*/manifest.json"))) == 2


def test_a_step_killed_with_sigkill_is_killed_in_mlflow_too(maskgit, store, tmp_path_factory):
    """Its process dies without a word; the run that started it ships what its files say."""
    from mlflow import MlflowClient

    store.mkdir()
    shutil.copy(empty_database(tmp_path_factory), store / "mlflow.db")
    done = maskgit("run", "experiment=chain", "numbers.fail=kill", "--config-dir", str(LAB))
    assert done.returncode == 1, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")

    def shown():
        found = client.search_runs([client.get_experiment_by_name("chain").experiment_id])
        return {r.info.run_name: r.info.status for r in found if r.data.tags["stage"] != "pipeline"}

    assert shown()["numbers"] in ("KILLED", "FAILED")
    ship(store)  # the next sync: whoever would have run the other step is gone
    assert shown()["total"] == "KILLED"
