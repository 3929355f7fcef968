"""Damaged documents: named, set aside and rebuilt where a digest vouches for the outputs; else the step runs once."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import LAB

from experiments.cli import main
from experiments.launching import prepare
from experiments.store.documents import Manifest, Record, Request
from experiments.store.journal import read_points
from tools.fuzz.store_files import MUTATIONS

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.fixture
def ran(store: Path) -> list[str]:
    """The arguments of a run of the toy chain that has finished in `store`."""
    arguments = ["experiment=chain", f"paths.store={store}", "launcher=inline", "tracking.ship=false"]
    arguments += ["--config-dir", str(LAB)]
    assert main(["run", *arguments]) == 0
    return arguments


def step(store: Path, stage: str) -> Path:
    (folder,) = store.glob(f"{stage}/*")
    return folder


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


@pytest.mark.parametrize("stage", ["numbers", "total"])
def test_a_damaged_manifest_is_named_and_rebuilt_without_running_anything(store, ran, capsys, stage):
    folder = step(store, stage)
    path = folder / Manifest.FILE
    before = json.loads(path.read_text())
    path.write_text(path.read_text()[: len(path.read_text()) // 4])
    capsys.readouterr()
    assert main(["plan", *ran]) == 2
    assert str(path) in one_line(capsys), "the file and the way out"
    assert main(["run", *ran]) == 0
    captured = capsys.readouterr()
    assert "set aside as manifest.json.damaged, rebuilt" in captured.err and "2 steps: 2 done" in captured.out
    after = json.loads(path.read_text())
    assert after == before and not list(folder.glob("attempts/0002"))


@pytest.mark.parametrize("stage", ["numbers", "total"])
def test_the_manifest_of_another_step_is_damage(store, ran, capsys, stage):
    folder, other = step(store, stage), step(store, {"numbers": "total", "total": "numbers"}[stage])
    before = (folder / Manifest.FILE).read_text()
    (folder / Manifest.FILE).write_bytes((other / Manifest.FILE).read_bytes())
    capsys.readouterr()
    assert main(["status", "--store", str(store)]) == 0
    assert "manifest.json is damaged (belongs to another step)" in capsys.readouterr().out
    assert main(["run", *ran]) == 0
    assert "set aside as manifest.json.damaged, rebuilt" in capsys.readouterr().err
    assert json.loads((folder / Manifest.FILE).read_text()) == json.loads(before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["made_from.json", "manifest.json", "request.json", "attempts/0001/journal.jsonl"])
@pytest.mark.parametrize("what", ["link to itself", "pipe", "device"])
def test_what_is_no_file_is_damage_and_not_waited_for(store, ran, capsys, name, what):
    path = step(store, "total") / name
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if what == "link to itself" else "/dev/zero")
    for command in (["status", "--store", str(store)], ["run", *ran], ["run", *ran, "--redo", "total"]):
        assert main(command) == 0, capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err


def test_without_a_witness_the_step_runs_once_more_and_only_once(store, ran, capsys):
    folder = step(store, "total")
    (folder / Manifest.FILE).write_text("")
    (folder / Record.FILE).unlink()
    assert main(["run", *ran]) == 0 and "the step runs again" in capsys.readouterr().err
    assert (folder / "attempts" / "0002").is_dir()
    assert main(["run", *ran]) == 0 and "nothing to do" in capsys.readouterr().out


def test_changed_outputs_are_never_vouched_for(store, ran):
    folder = step(store, "numbers")
    (folder / "files" / "numbers.json").write_text("[5.0]")
    (folder / Manifest.FILE).write_text("{")
    assert main(["run", *ran]) == 0
    assert json.loads((folder / "files" / "numbers.json").read_text()) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_damaged_request_is_rebuilt_from_the_record_or_the_config(store, ran, capsys):
    folder = step(store, "numbers")
    before = Request.needed(folder)
    for with_record in (True, False):
        (folder / Request.FILE).write_text("5")
        if not with_record:
            (folder / Record.FILE).unlink()
        assert main(["run", *ran]) == 0 and "request.json: was damaged" in capsys.readouterr().err
        assert Request.needed(folder) == before


def test_verify_finds_changes_that_kept_size_and_time(store, ran, capsys):
    path = step(store, "numbers") / "files" / "numbers.json"
    info, text = path.stat(), path.read_text()
    path.write_text(text.replace("4.0", "7.0"))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    at = ["--store", str(store)]
    assert main(["verify", *at]) == 0 and main(["verify", "--deep", *at]) == 1
    assert "numbers.json: does not match the sha256" in capsys.readouterr().err
    path.write_text(text)
    assert main(["verify", "chain/numbers", "--deep", *at]) == 0


@pytest.mark.parametrize("name", ["digits", "deep", "latin", "null", "list"])
def test_damaged_notes_about_inputs_only_drop_unfinished_work(store, ran, name):
    path = step(store, "total") / "made_from.json"
    path.write_bytes(MUTATIONS[name](path.read_bytes(), random.Random(0)))
    assert main(["run", *ran, "--redo", "total"]) == 0 and json.loads(path.read_text())


def test_verify_repairs_on_request(store, ran, capsys):
    path = step(store, "total") / Manifest.FILE
    path.write_text(path.read_text().replace("4", "\0", 1))
    at = ["--store", str(store)]
    assert main(["verify", *at]) == 1 and main(["verify", "--repair", *at]) == 0 and main(["verify", *at]) == 0


def test_one_damaged_record_of_a_run_does_not_hide_the_others(store, ran, capsys):
    assert main(["run", "experiment=rates", *ran[1:], "sweep.grid={train.lr: [0.1]}"]) == 0
    broken, whole = sorted((store / "pipelines").glob("*.json"))
    broken.write_text(broken.read_text()[:100])
    capsys.readouterr()
    assert main(["status", "--store", str(store)]) == 0
    told = capsys.readouterr()
    assert "rates" in told.out and str(broken) in told.err and "maskgit verify --repair" in told.err
    assert main(["failures", "--store", str(store)]) == 0 and str(broken) in capsys.readouterr().err
    assert main(["gc", "--delete", "--yes", "--store", str(store)]) == 2
    assert str(broken) in one_line(capsys) and whole.exists(), "what it needs is not known, so nothing goes"


def test_a_damaged_step_is_a_row_of_status(store, ran, capsys):
    (step(store, "total") / Manifest.FILE).write_text("{")
    capsys.readouterr()
    assert main(["status", "--store", str(store)]) == 0
    told = capsys.readouterr().out
    assert "damaged" in told and "manifest.json" in told and "1 done, 1 damaged" in told


@pytest.mark.parametrize("change", [("config", "count"), ("fingerprint",)])
def test_a_request_that_asks_for_something_else_is_named_and_rebuilt(store, ran, capsys, change):
    """A digit changed in a well-formed file: the step would silently be made of other values, or be made twice."""
    path = step(store, "numbers") / Request.FILE
    whole, before = path.read_text(), Manifest.needed(path.parent).digest
    value = json.loads(whole)
    if change == ("fingerprint",):
        value["fingerprint"] = "0" * 64
    else:
        value["config"]["count"] += 2
    path.write_text(json.dumps(value))
    capsys.readouterr()
    assert main(["run", *ran, "--redo", "numbers"]) == 0
    assert str(path) in capsys.readouterr().err and json.loads(path.read_text()) == json.loads(whole)
    assert Manifest.needed(step(store, "numbers")).digest == before


def test_only_what_was_damaged_is_written_again(store, ran, monkeypatch):
    """One damaged document made the requests of all later steps be written again (and synced to disk)."""
    written = []
    write = prepare.write_request
    monkeypatch.setattr(prepare, "write_request", lambda node, *more: (written.append(node.name), write(node, *more)))
    first, last = step(store, "numbers"), step(store, "total")
    (first / "launch.json").write_text("[]")
    assert main(["run", *ran]) == 0 and written == []
    (last / Request.FILE).unlink()
    assert main(["run", *ran]) == 0 and written == ["total"] and Request.needed(last)


def test_a_run_says_what_its_shipping_found(store, ran, capsys):
    """A database that was set aside was named by `sync` alone."""
    assert main(["sync", "--store", str(store)]) == 0
    (store / "mlflow.db").write_bytes(b"no database")
    asked = [word for word in ran if word != "tracking.ship=false"]
    assert main(["run", *asked, "--redo", "total"]) == 0
    told = capsys.readouterr().err
    assert "mlflow.db: is damaged" in told and "set aside as" in told and "made anew from the store" in told


@pytest.mark.parametrize("change", ["a digit", "a bit", "the last line", "all"])
def test_a_changed_journal_is_named(store, ran, capsys, change):
    """Nothing told a changed curve from a right one, or one that had lost its end."""
    path = step(store, "numbers") / "attempts" / "0001" / "journal.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = {
        "a digit": whole.replace(b'"value": 3.0', b'"value": 8.0'),
        "a bit": whole[:40] + bytes([whole[40] ^ 4]) + whole[41:],
        "the last line": b"".join(lines[:-1]),
        "all": b"",
    }[change]
    assert changed != whole and len(lines) > 3
    path.write_bytes(changed)
    at = ["--store", str(store)]
    capsys.readouterr()
    assert main(["verify", *at]) == 1 and str(path) in capsys.readouterr().err
    assert main(["sync", *at]) == 1 and str(path) in capsys.readouterr().err
    path.write_bytes(whole + b'{"step": 99, "ti')  # what a process on a lost node added since
    assert main(["verify", *at]) == 0


def test_a_curve_of_an_unfinished_step_has_no_damaged_point(store, ran, capsys):
    path = step(store, "numbers") / "attempts" / "0001" / "journal.jsonl"
    whole = path.read_bytes()
    (path.parents[2] / Record.FILE).unlink()
    path.write_bytes(whole.replace(b'"value": 3.0', b'"value": 8.0')[:-5])  # and its last line torn by a kill
    assert [p.value for p in read_points(path.parents[2]) if p.metric == "value"] == [0.0, 1.0, 2.0]
    capsys.readouterr()
    assert main(["verify", "--store", str(store)]) == 1
    assert "line 4 is damaged; its points are left out" in capsys.readouterr().err


def test_a_step_that_crashes_over_a_changed_input_names_it(store, ran, capsys):
    """Size and time were kept, so nothing had been noticed before the stage read it: a traceback about JSON."""
    path = step(store, "numbers") / "files" / "numbers.json"
    info = path.stat()
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    capsys.readouterr()
    assert main(["run", *ran, "--redo", "total"]) == 2
    told = "".join(capsys.readouterr())
    assert "Traceback" not in told and "numbers.json: does not match the sha256 in its manifest" in told


@pytest.mark.parametrize("place", ["a folder", "a link to nothing"])
def test_what_stands_in_a_documents_place_is_set_aside(store, ran, capsys, place):
    """A link to nothing read as no done mark, so the step ran, could not be marked done, and ended with 0."""
    path = step(store, "total") / Manifest.FILE
    path.unlink()
    path.mkdir() if place == "a folder" else path.symlink_to("nowhere")
    assert main(["plan", *ran]) == 2 and main(["run", *ran]) == 0
    assert f"is {place}" in capsys.readouterr().err and path.is_file()
    assert main(["run", *ran]) == 0 and "nothing to do" in capsys.readouterr().out


def test_a_folder_in_place_of_notes_about_inputs_is_named_and_nobody_waits(store, ran, capsys):
    """It was a traceback that left the claim behind, for which this process then waited for ever."""
    path = step(store, "total") / "made_from.json"
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    for _ in range(2):
        assert main(["run", *ran, "--redo", "total"]) == 2
        assert f"{path}: is a folder where a file belongs" in one_line(capsys).replace("error: error: ", "error: ")
    path.rmdir()
    assert main(["run", *ran]) == 0


@pytest.mark.parametrize("place", ["a file", "a link to another attempt"])
def test_the_link_to_the_outputs_always_leads_to_those_of_the_done_mark(store, ran, place):
    """A step that read its input through a changed link crashed, or silently read an attempt that was set aside."""
    files = step(store, "numbers") / "files"
    other = files.parent / "attempts" / "0009"
    shutil.copytree(files.parent / "attempts" / "0001" / "files", other / "files")
    (other / "files" / "numbers.json").write_text("[100.0]")
    files.unlink()
    files.write_text("x") if place == "a file" else files.symlink_to("attempts/0009/files")
    before = Manifest.needed(step(store, "total")).digest
    assert main(["run", *ran, "--redo", "total"]) == 0
    assert Manifest.needed(step(store, "total")).digest == before and os.readlink(files) == "attempts/0001/files"
