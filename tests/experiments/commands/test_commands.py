"""The commands around a run: status, logs, config, gc, completion, doctor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LAB, ROOT

from maskgit_core.files import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the toy chain ran once."""
    store = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", "experiment=chain", "launcher=inline", "tracking.ship=false",
         f"paths.store={store}", "--config-dir", str(LAB)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return store


def test_status_in_words_and_json(maskgit: Any, finished: Path) -> None:
    text = maskgit("status", "--store", str(finished)).stdout
    assert "chain" in text and "total 10" in text and "done" in text
    records = json.loads(maskgit("status", "chain", "--json", "--store", str(finished)).stdout)
    assert [s["state"] for s in records[0]["steps"]] == ["done", "done"]
    assert records[0]["steps"][1]["headline"] == {"name": "total", "value": 10.0, "protocol": None}
    wrong = maskgit("status", "chian", "--store", str(finished))
    assert wrong.returncode == 2 and "did you mean chain?" in wrong.stderr


def test_a_run_killed_from_outside_is_shown_as_such_at_once(store: Path, maskgit: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "run", "experiment=chain", "tracking.ship=false",
         f"paths.store={store}", "numbers.count=500", "numbers.pause_s=0.05", "--config-dir", str(LAB)],
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(store.glob("numbers/*/attempts/0001/progress.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running = json.loads(maskgit("status", "--json", "--store", str(store)).stdout)[0]["steps"]
    assert [s["state"] for s in running] == ["running", "waiting"]
    assert running[0]["progress"]["total"] == 500 and "pid" in running[0]["owner"]
    claim = read_json(next(store.glob("numbers/*/claim.json")))
    assert claim is not None
    os.kill(claim["pid"], signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the kernel takes the processes away
    killed = json.loads(maskgit("status", "--json", "--store", str(store)).stdout)[0]["steps"]
    assert [s["state"] for s in killed] == ["killed", "blocked"]


def test_logs(maskgit: Any, finished: Path) -> None:
    step = finished / "experiments" / "chain" / "numbers"
    next((step / "logs").glob("*.txt")).write_text("one\ntwo\nthree\n")
    assert maskgit("logs", "numbers", "--store", str(finished)).stdout == "one\ntwo\nthree\n"
    assert maskgit("logs", "chain/numbers", "-n", "1", "--store", str(finished)).stdout == "three\n"
    assert maskgit("logs", str(step.resolve()), "-f", "-n", "1").stdout == "three\n"
    wrong = maskgit("logs", "nmubers", "--store", str(finished))
    assert wrong.returncode == 2 and "did you mean numbers?" in wrong.stderr
    assert maskgit("logs", "numbers", "--rank", "3", "--store", str(finished)).returncode == 2


def test_config_composed_and_checked(lab: Any) -> None:
    composed = lab("config", "experiment=chain", "numbers.count=7")
    assert composed.returncode == 0 and "count: 7" in composed.stdout and "scale" not in composed.stdout
    checked = lab("config", "experiment=chain", "--checked")
    assert "scale: 1.0" in checked.stdout, "defaults are filled in"
    assert lab("config", "experiment=chain", "numbers.cuont=7").returncode == 2


def test_gc_is_dry_by_default_and_keeps_what_is_reached(maskgit: Any, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished, store, symlinks=True)
    assert "nothing to delete" in maskgit("gc", "--store", str(store)).stdout
    shutil.rmtree(store / "experiments" / "chain")
    assert "nothing to delete" in maskgit("gc", "--store", str(store)).stdout, "a run used them"
    dry = maskgit("gc", "--drop", "chain", "--store", str(store)).stdout
    assert "would go to the trash" in dry and len(list(store.glob("*/*/manifest.json"))) == 2
    maskgit("gc", "--delete", "--store", str(store))
    assert not list(store.glob("*/*/manifest.json"))


def test_gc_lets_go_of_submissions_and_frozen_code_nobody_needs(maskgit: Any, finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished, store, symlinks=True)
    (numbers,) = store.glob("numbers/*")
    (numbers / "submitted.json").write_text(json.dumps({"links": ["1"], "pipeline": "kept", "user": "me"}))
    for uid, digest in (("kept", "needed"), ("old", "unused")):
        (store / "slurm" / uid / "000").mkdir(parents=True)
        (store / "code" / digest).mkdir(parents=True)
        (store / "slurm" / uid / "000" / "job-0.sh").write_text(f"cd {store}/code/{digest}\n")
    (store / "code" / "fresh").mkdir()
    for path in ("slurm/kept", "slurm/old", "code/needed", "code/unused"):
        os.utime(store / path, (1, 1))
    dry = maskgit("gc", "--store", str(store)).stdout
    assert "slurm/old" in dry and "code/unused" in dry and "kept" not in dry and "fresh" not in dry
    assert maskgit("gc", "--delete", "--store", str(store)).returncode == 0
    assert {p.name for p in store.glob("slurm/*")} == {"kept"}
    assert {p.name for p in store.glob("code/*")} == {"needed", "fresh"} and len(
        list(store.glob("*/*/manifest.json"))
    ) == 2


def test_plan_json_and_redo(lab: Any) -> None:
    rows = json.loads(lab("plan", "experiment=fanin", "--json").stdout)["steps"]
    assert len(rows) == 7 and {r["action"] for r in rows} == {"run"}
    assert sorted(r["name"] for r in rows if r["stage"] == "numbers") == [
        "numbers[scale=1]", "numbers[scale=2]", "numbers[scale=3]"
    ]  # fmt: skip


def test_sweep_files(lab: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "points.yaml"
    sweep.write_text(
        "grid: {numbers.scale: [1, 2], total.weight: [1, 2]}\n"
        "list: [{numbers.scale: 9, total.weight: 9}]\n"
        "exclude: [{numbers.scale: 2, total.weight: 2}]\n"
        "seeds: {numbers.offset: [0, 1]}\n"
    )
    rows = json.loads(lab("plan", "experiment=chain", f"sweep={sweep}", "--json").stdout)["steps"]
    assert len([r for r in rows if r["stage"] == "total"]) == (4 - 1 + 1) * 2
    sweep.write_text("zip: {numbers.scale: [1, 2], total.weight: [1, 2, 3]}\n")
    wrong = lab("plan", "experiment=chain", f"sweep={sweep}")
    assert wrong.returncode == 2 and "lists of different lengths" in wrong.stderr
    missing = lab("plan", "experiment=chain", "sweep=nowhere")
    assert missing.returncode == 2 and "there is no file nowhere" in missing.stderr


def test_help_shows_examples_and_experiments(maskgit: Any) -> None:
    text = maskgit("--help").stdout
    assert "quickstart" in text and "examples:" in text and "  plan" in text
    for verb in ("run", "plan", "status", "logs", "adopt", "gc", "doctor"):
        done = maskgit(verb, "--help")
        assert done.returncode == 0 and "examples:" in done.stdout, verb


def test_a_refused_step_says_so_once_with_any_launcher(lab: Any) -> None:
    for launcher in ("inline", "local"):
        done = lab("run", "experiment=chain", "numbers.fail=refuse", f"launcher={launcher}")
        assert done.returncode == 2 and done.stderr.count("numbers.txt: cannot be read") == 1, done.stderr


def test_the_version_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from importlib import metadata

    from experiments import cli

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert "not installed" in capsys.readouterr().out
