"""`maskgit gc` never takes a step that a run used: not after re-pointed links, long names or unreadable roots."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from conftest import LAB

from experiments.cli import main
from experiments.store.documents import Manifest
from experiments.store.records import records

pytestmark = pytest.mark.usefixtures("composed_once")


def ran(store: Path, *overrides: str, experiment: str = "chain") -> None:
    arguments = [f"experiment={experiment}", f"paths.store={store}", "launcher=inline", "tracking.ship=false"]
    assert main(["run", *arguments, *overrides, "--config-dir", str(LAB)]) == 0


def done(store: Path) -> int:
    return len(list(store.glob(f"*/*/{Manifest.FILE}")))


def gc(store: Path, *arguments: str) -> int:
    return main(["gc", "--store", str(store), *arguments])


def test_a_run_with_other_values_does_not_give_up_the_first(store, capsys):
    ran(store)
    ran(store, "numbers.scale=2.0")
    assert done(store) == 4
    assert gc(store, "--delete", "--yes") == 0 and "nothing to delete" in capsys.readouterr().out
    assert done(store) == 4


def test_dropped_runs_go_to_the_trash_and_come_back(store, capsys):
    ran(store)
    ran(store, "numbers.scale=2.0")
    first = records(store)[-1]
    kept = {step.fingerprint[:8] for step in records(store)[0].steps}
    assert gc(store, "--drop", first.uid) == 0
    shown = capsys.readouterr().out
    assert "chain" in shown and "total 10" in shown and "would go to the trash" in shown and done(store) == 4
    assert gc(store, "--delete") == 0
    assert {path.parent.name[-8:] for path in store.glob(f"*/*/{Manifest.FILE}")} == kept
    assert gc(store, "--restore", next(store.glob(".trash/*/total/*")).name) == 0 and done(store) == 3
    assert gc(store, "--empty-trash") == 0 and list(store.glob(".trash/*/numbers/*")), "not before a week is over"
    assert gc(store, "--drop", "nosuch") == 2


def test_what_was_given_up_and_asked_for_again_is_wanted_though_nothing_had_to_run(store, capsys):
    ran(store)
    assert gc(store, "--drop", "chain") == 0
    ran(store)
    assert "nothing to do" in capsys.readouterr().out and len(records(store)) == 1
    ran(store)
    assert len(records(store)) == 1, "one record is enough"
    assert gc(store, "--delete", "--yes") == 0 and done(store) == 2


def test_links_of_long_labels_are_distinct(store):
    long = "a" * 190
    for name in ("one", "two"):
        source = store.parent / long / name / "numbers.json"
        source.parent.mkdir(parents=True)
        source.write_text(f"{len(name)}.{ord(name[0])}")
    ran(store, f"numbers.source={store.parent}/{long}/one/numbers.json,{store.parent}/{long}/two/numbers.json")
    links = list((store / "experiments" / "chain").iterdir())
    assert len(links) == 4 and len({link.resolve() for link in links}) == len(list(store.glob("[nt]*/*"))), links


@pytest.mark.parametrize("damage", ["pipelines", "experiments", "record", "set_aside", "no_records"])
def test_roots_that_cannot_be_read_are_an_error(store, capsys, damage):
    ran(store)
    (record,) = (store / "pipelines").glob("*.json")
    if damage in ("pipelines", "experiments"):
        shutil.rmtree(store / damage)
        (store / damage).write_text("a file")
    elif damage == "record":
        record.write_text(record.read_text()[:100])
    elif damage == "set_aside":
        record.rename(record.with_name(record.name + ".damaged"))
    else:
        record.unlink()
        shutil.rmtree(store / "experiments")
    assert gc(store, "--delete", "--yes") == 2 and done(store) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1
    if damage == "set_aside":
        assert gc(store, "--drop", record.stem) == 0


def test_an_hours_work_is_not_moved_without_asking(store, capsys, monkeypatch):
    from dataclasses import replace

    ran(store)
    for path in store.glob(f"numbers/*/{Manifest.FILE}"):
        replace(Manifest.needed(path.parent), seconds=4000.0).write(path.parent)
    gc(store, "--drop", "chain")
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    assert gc(store, "--delete") == 2 and done(store) == 2 and "--yes" in capsys.readouterr().err
    assert gc(store, "--delete", "--yes") == 0 and done(store) == 0


def test_what_was_in_the_trash_for_a_week_is_deleted(store, monkeypatch):
    ran(store)
    gc(store, "--drop", "chain")
    assert gc(store, "--delete") == 0
    now = time.time()
    monkeypatch.setattr("experiments.store.upkeep.trash.time.time", lambda: now + 8 * 86400)
    assert gc(store, "--empty-trash") == 0 and not list(store.glob(".trash/*"))
