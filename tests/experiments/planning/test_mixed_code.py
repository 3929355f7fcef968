"""Two versions of the code never stand under one number: a sweep runs its changed points again, tables say so."""

from __future__ import annotations

import json
import sqlite3
import sys
import types
from contextlib import closing
from pathlib import Path

import pytest
from conftest import LAB

from experiments.cli import main
from experiments.results.results import collect
from experiments.results.table_formats import FORMATS
from experiments.results.tables import fill, read_table
from experiments.store.code_digests import unlike_code
from experiments.store.documents import Record
from experiments.store.records import records
from experiments.tracking.run_facts import common_tags
from launchers import inline
from maskgit_core.errors import LaunchError

OLD = {"sha256": "0" * 64, "code": "0" * 64}
TABLE = """\
title: rates
columns: {fd: {metric: fd_toy, protocol: toy, digits: 3}}
protocols: {toy: the optimum}
rows:
  - {name: all, run: {experiment: rates, step: evaluate}}
"""


@pytest.fixture
def request_(tmp_path: Path) -> list[str]:
    """Three finished points."""
    asked = ["experiment=rates", "launcher=inline", "tracking.ship=false", f"paths.store={tmp_path / 'store'}",
             "--config-dir", str(LAB), "sweep.grid={train.seed: [0, 1, 2]}"]  # fmt: skip
    assert main(["run", *asked]) == 0
    return asked


def grow_old(store: Path, *seeds: int) -> None:
    """Makes the trainings with these seeds look as if other code had made them."""
    for path in store.glob("descent/*/record.json"):
        record = json.loads(path.read_text())
        if record["request"]["config"]["seed"] in seeds:
            record["science_files"]["toylab.stages.descent"] = OLD
            path.write_text(json.dumps(record))


def planned(capsys: pytest.CaptureFixture[str], *asked: str) -> dict[str, dict[str, str]]:
    capsys.readouterr()
    assert main(["plan", *asked, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["steps"]}


def test_a_sweep_that_would_mix_runs_its_changed_points_again(tmp_path, request_, capsys):
    store = tmp_path / "store"
    grow_old(store, 1)
    rows = planned(capsys, *request_)
    assert rows["train[seed=1]"]["action"] == "run" and rows["train[seed=0]"]["action"] == "done"
    assert "toylab.stages.descent has changed); --reuse-old-code keeps it" in rows["train[seed=1]"]["reason"]
    assert {row["action"] for row in planned(capsys, *request_, "--reuse-old-code").values()} == {"done"}
    assert main(["run", *request_]) == 0
    assert {row["action"] for row in planned(capsys, *request_).values()} == {"done"}
    assert len(list(store.glob("descent/*/attempts/0002"))) == 1


def test_a_run_that_ends_before_its_turn_gives_points_their_results_back(tmp_path, request_, monkeypatch):
    store = tmp_path / "store"
    grow_old(store, 1)
    before = {path: path.read_bytes() for path in store.glob("*/*/manifest.json")}

    def refuses(*args, **kwargs):
        assert len(list(store.glob("descent/*/manifest.json"))) == 2, "set aside, so that its job runs"
        raise LaunchError("nothing can be started here")

    monkeypatch.setattr(inline.Launcher, "launch", refuses)
    assert main(["run", *request_]) != 0
    assert {path: path.read_bytes() for path in store.glob("*/*/manifest.json")} == before
    assert all((path.parent / "files").is_dir() for path in before)


def test_points_of_one_old_code_stay_until_a_new_one_joins_them(tmp_path, request_, capsys):
    store = tmp_path / "store"
    grow_old(store, 0, 1, 2)
    rows = planned(capsys, *request_)
    assert {row["action"] for row in rows.values()} == {"done"} and "--redo runs it again" in str(rows)
    more = [*request_[:-1], "sweep.grid={train.seed: [0, 1, 2, 3]}"]
    assert {row["action"] for name, row in planned(capsys, *more).items() if name.startswith("train")} == {"run"}
    assert main(["run", *more, "--reuse-old-code"]) == 0
    (record,) = [r for r in records(store) if len(r.items) == 4]
    assert common_tags(record)["mixed_code"] == "train"
    assert main(["sync", "--store", str(store)]) == 0
    with closing(sqlite3.connect(f"file:{store / 'mlflow.db'}?mode=ro", uri=True)) as database:
        tags = "SELECT runs.name, value FROM tags JOIN runs USING (run_uuid) WHERE key = ?"
        old = dict(database.execute(tags, ("old_code",)))
        mixed = {name.split()[0] for name, _ in database.execute(tags, ("mixed_code",))}
    assert old == {f"train[seed={n}]": "toylab.stages.descent" for n in (0, 1, 2)} and "rates" in mixed


def test_tables_and_comparisons_say_so(tmp_path, request_, capsys):
    store, place = tmp_path / "store", tmp_path / "conf"
    (place / "table").mkdir(parents=True)
    (place / "table" / "rates.yaml").write_text(TABLE)
    grow_old(store, 1)
    filled = fill(read_table("rates", [place]), store)
    cell = filled.cells[0]["fd"]
    assert cell.reproduced is None and "made by different code (toylab.stages.descent)" in (cell.missing or "")
    capsys.readouterr()
    assert main(["compare", "experiment=rates", "--store", str(store)]) == 0
    assert "not averaged (made by different code: toylab.stages.descent" in capsys.readouterr().out
    grow_old(store, 0, 1, 2)
    text = FORMATS["md"](fill(read_table("rates", [place]), store))
    assert "by code that has changed since (toylab.stages.descent)" in text
    assert all(result.old_code == ("toylab.stages.descent",) for result in collect(store))


def test_versions_of_a_module_are_told_apart_by_what_they_do():
    one = {"a": {"sha256": "1", "code": "x"}}
    two = {"a": {"sha256": "2", "code": "x"}, "b": {"sha256": "3", "code": "y"}}
    assert unlike_code([one, two]) == [] and unlike_code([one, {"a": OLD}]) == ["a"]


@pytest.mark.parametrize("change", ["gone", "half edited"])
def test_code_that_changes_while_a_step_runs_does_not_cost_its_result(tmp_path, monkeypatch, change):
    """Another branch was checked out, or a file was saved half typed: hours of work crashed at their end."""
    path = tmp_path / "written.py"
    path.write_text("def f(:" if change == "half edited" else "")
    if change == "gone":
        path.unlink()
    module = types.ModuleType("maskgit_core.written")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "maskgit_core.written", module)
    asked = ["experiment=chain", "launcher=inline", "tracking.ship=false", f"paths.store={tmp_path / 'store'}"]
    assert main(["run", *asked, "--config-dir", str(LAB)]) == 0
    (record,) = (Record.needed(path.parent) for path in (tmp_path / "store").glob("total/*/record.json"))
    assert len(record.science_files["maskgit_core.written"]["code"]) == 64
    assert main(["plan", *asked, "--config-dir", str(LAB)]) == 0
