"""`maskgit search`: what is refused, what is kept, and what a killed worker leaves to the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LAB, ROOT, Done, Maskgit
from toylab import search_drill as drill

from experiments.config.search import Choice, Interval, read_search
from experiments.searching import worker
from experiments.searching.study import Study
from experiments.searching.trial_log import JOURNAL
from experiments.store.records import records
from experiments.store.typed_json import DamagedError
from maskgit_core.errors import ConfigError

SMALL = {"metric": "fid", "space": {"train.lr": {"low": 0.1, "high": 1.0}}}
QUIET = ["tracking.ship=false", "--config-dir", str(LAB)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": None}, "search.metric: found None"),
        ({"metric": "loudness"}, "search.goal: missing"),
        ({"trails": 3}, "search.trails: unknown key; did you mean trials?"),
        ({"trials": 0}, "search.trials: 0 is out of range"),
        ({"space": {}}, "search.space: found {}"),
        ({"space": {"train.lr": 3}}, "search.space.train.lr: found 3"),
        ({"space": {"train.lr": [1]}}, "two or more different"),
        ({"space": {"train.lr": {"low": 2, "high": 1}}}, "low 2 is not below high 1"),
        ({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "log needs low above 0"),
        ({"space": {"train.lr": {"low": "a", "high": 1}}}, "search.space.train.lr.low: found 'a'"),
        ({"space": {"train.lr": {"low": 1, "hihg": 1}}}, "search.space.train.lr.hihg: unknown key"),
        ({"sampler": "grid"}, "search.sampler: found 'grid'"),
        ({"prune": "median"}, "search.prune.name: found 'median'"),
        ({"prune": {"at": [0]}}, "search.prune.at: 0 is out of range"),
        ({"resources": {"nodes": 2}}, "search.resources.nodes: belongs to steps"),
    ],
)
def test_a_wrong_block_is_one_line_that_names_the_key(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_search({**SMALL, **change})
    assert told in str(error.value)


def test_keys_of_the_space_may_be_nested_and_lists_of_numbers_are_ordered() -> None:
    block = {**SMALL, "space": {"train": {"lr": {"low": 1, "high": 9}, "size": [4, 1.5]}, "sampler": ["b", "a"]}}
    assert read_search(block).space == {
        "train.lr": Interval(1, 9),
        "train.size": Choice((1.5, 4)),
        "sampler": Choice(("b", "a")),
    }
    assert Interval(1, 9).is_whole and not Interval(1, 9.0).is_whole


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment=chain"], "search: missing"),
        (["experiment=tuned", "train.lr=1,2"], "train.lr: a search has no sweep"),
        (["experiment=tuned", "search.space={trian.lr: [1, 2]}"], "did you mean train?"),
        (["experiment=tuned", "search.space={train.lr: [0.1, x]}"], "train.lr: found 'x'"),
        (["experiment=tuned", "search.space={train.momentum: [0.1, 1.0]}"], "train.momentum: 1 is out of range"),
        (["experiment=tuned", "search.prune.at=[35]"], "search.prune.at: train keeps no checkpoint of step 35"),
        (["experiment=tuned", "search.prune.at=[90]"], "search.prune.at: no step before the end"),
        (["experiment=tuned", "train.keep_every=null"], "train.keep_every: null, but search.prune scores kept"),
        (["experiment=tuned", "search.step=train2"], "search.step: there is no step"),
        (["experiment=tuned", "resources.train.nodes=2", "resources.train.ranks=2"], "resources.train.nodes: a search"),
        (["tuned", "--cancel"], "search: none was started"),
        (["train.lr=3", "--status"], "name one experiment"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.cli import main

    monkeypatch.setenv("MASKGIT_STORE", str(store))
    assert main(["search", *arguments, *(QUIET if "--" not in arguments[-1] else [])]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1
    assert not store.exists() or not (store / "searches").exists()


def test_without_optuna_the_refusal_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.searching import launch

    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Optuna.*maskgit-experiments\[search\]"):
        launch.refuse_without_optuna()


# -- the journal ------------------------------------------------------------------------------------------------------
def test_a_torn_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    search = read_search(SMALL)
    study = Study(tmp_path, search)
    study.report(study.ask(), 10, 0.5)
    whole = (tmp_path / JOURNAL).read_bytes()
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code":7,"worker_id"')
    other = Study(tmp_path, search)
    assert other.trials()[0].values == {10: 0.5}
    other.report(0, 20, 0.25)
    assert (tmp_path / JOURNAL).read_bytes().startswith(whole + b"{")
    assert Study(tmp_path, search).trials()[0].values == {10: 0.5, 20: 0.25}


@pytest.mark.parametrize(
    "damage", ["flip", "digit", "lost line", "doubled line", "no newline", "latin", "zeros", "folder"]
)
def test_a_changed_journal_is_named_and_nothing_of_it_is_cut(tmp_path: Path, damage: str) -> None:
    search, path = read_search(SMALL), tmp_path / JOURNAL
    study = Study(tmp_path, search)
    study.report(study.ask(), 10, 0.5)
    lines = path.read_bytes().splitlines(keepends=True)
    whole = b"".join(lines)
    changed = {
        "flip": whole[:60] + bytes([whole[60] ^ 128]) + whole[61:],
        "digit": whole.replace(b"0.5", b"0.4"),
        "lost line": b"".join([lines[0], *lines[2:]]),
        "doubled line": b"".join([*lines[:2], *lines[1:]]),
        "no newline": b"null",
        "latin": b"\xff\xfe" + whole,
        "zeros": bytes(len(whole)),
        "folder": b"",
    }[damage]
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(changed)
    with pytest.raises(DamagedError, match=r"journal\.log: is damaged: .*; move it away and give the search's command"):
        Study(tmp_path, search).ask()
    assert damage == "folder" or path.read_bytes() == changed


def test_a_journal_of_an_earlier_release_has_no_checksums(tmp_path: Path) -> None:
    search = read_search(SMALL)
    study = Study(tmp_path, search)
    study.report(study.ask(), 10, 0.5)
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_bytes().splitlines()]
    text = "".join(
        json.dumps({k: v for k, v in line.items() if k != "crc"}, separators=(",", ":")) + "\n" for line in lines
    )
    (tmp_path / JOURNAL).write_text(text)
    Study(tmp_path, search).report(0, 20, 0.25)
    assert Study(tmp_path, search).trials()[0].values == {10: 0.5, 20: 0.25}


def test_a_trial_whose_worker_was_killed_while_it_drew_gets_what_it_lacks(tmp_path: Path) -> None:
    block = {**SMALL, "space": {**SMALL["space"], "model.depth": [1, 2, 3], "sampler": ["a", "b"]}, "seed": 5}
    whole = Study(tmp_path, read_search(block))
    drawn = whole.params(whole.ask())
    for cut in (2, 3, 4):  # a study, a trial and so many of its values
        lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
        other = tmp_path / str(cut)
        other.mkdir()
        (other / JOURNAL).write_bytes(b"".join(lines[:cut]))
        study = Study(other, read_search(block))
        (trial,) = study.trials()
        assert trial.state == "running" and len(trial.params) == cut - 2
        assert study.params(0) == {**study.params(0), **trial.params} and study.params(0).keys() == drawn.keys()


def test_one_in_three_goes_on_and_asking_again_gives_the_same_answer(tmp_path: Path) -> None:
    study = Study(tmp_path, read_search({**SMALL, "prune": "asha"}))
    for value in (5.0, 4.0, 6.0, 3.0, 7.0, 8.0):
        number = study.ask()
        study.report(number, 10, value)
        assert study.falls_behind(number, 10) == (value not in (5.0, 4.0, 3.0)) == study.falls_behind(number, 10)
    assert not study.falls_behind(1, 10) and study.falls_behind(0, 10), "two of six now"


# -- searches ---------------------------------------------------------------------------------------------------------
def told(lab: Maskgit, *more: str) -> dict[str, Any]:
    done = lab("search", "tuned", "--status", "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_search_is_steps_of_the_store_and_goes_on_where_it_ended(lab: Maskgit, maskgit: Maskgit, store: Path) -> None:
    search = ["tuned", "launcher=inline", "tracking.ship=false"]
    plan = lab("search", *search, "--plan")
    assert "60 trials by tpe" in plan.stdout and "pruned at train@30" in plan.stdout and not store.exists()
    done = lab("search", *search, "search.trials=6")
    assert done.returncode == 0, done.stdout + done.stderr
    drill.check(told(lab), store, 6)
    again = lab("search", *search, "search.trials=6")
    assert "all 6 trials have ended" in again.stdout and again.returncode == 0
    more = lab("search", *search, "search.trials=8")
    assert more.returncode == 0 and len(list((store / "searches").iterdir())) == 1
    drill.check(told(lab), store, 8)
    (record,) = records(store)
    assert record.experiment == "tuned" and len(record.items) == sum(len(t["values"]) for t in told(lab)["trials"])
    command = done.stdout.rpartition("maskgit run ")[2].split()
    run = lab("run", *command)
    assert run.returncode == 0 and "nothing to do" in run.stdout, "the best trial's steps are the experiment's"
    assert "no damage found" in maskgit("verify").stdout
    (journal,) = store.glob(f"searches/*/{JOURNAL}")
    journal.write_bytes(journal.read_bytes().replace(b"nll", b"nlL").replace(b'"trial_id":1', b'"trial_id":2', 1))
    broken = maskgit("verify")
    assert broken.returncode == 1 and f"{JOURNAL}: is damaged: line " in broken.stderr
    assert lab("search", "tuned", "--status").returncode == 2 and "Traceback" not in broken.stderr
    assert "set aside as journal.log.damaged" in maskgit("verify", "--repair").stdout
    anew = lab("search", *search, "search.trials=4")
    assert anew.returncode == 0 and len(told(lab)["trials"]) == 4, anew.stdout + anew.stderr
    table = maskgit("compare", "experiment=tuned")
    assert "train.lr" in table.stdout and table.returncode == 0, table.stderr


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(lab: Maskgit, store: Path) -> None:
    done = lab("search", "tuned", "launcher=inline", "tracking.ship=false", "train.fail_above=0.2", "search.trials=8")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = told(lab)["trials"]
    for trial in trials:
        assert (trial["state"] == "failed") == (trial["params"]["train.lr"] > 0.2)
        assert ("asked to fail" in trial["reason"]) == (trial["state"] == "failed")
    assert 0 < sum(trial["state"] == "failed" for trial in trials) < 8


@pytest.mark.parametrize("text", ["[]", "5", '{"kills": "x", "folders": 3, "training": [1], "number": 0}', "nul"])
def test_damaged_notes_of_a_trial_are_none(tmp_path: Path, text: str) -> None:
    place = tmp_path / "trials" / "0000"
    place.mkdir(parents=True)
    (place / "trial.json").write_text(text)
    assert worker.mark(str(tmp_path)) == [0] and worker.note_of(place).keys() <= {"number"}


def test_a_search_whose_trials_all_fail_ends(lab: Maskgit, store: Path) -> None:
    done = lab("search", "tuned", "launcher=inline", "tracking.ship=false", "train.fail_above=0")
    assert done.returncode == 1 and "3 trials failed and none gave a score" in done.stdout + done.stderr
    assert len(told(lab)["trials"]) == 3


def run_with_kills(store: Path, workers: int, trials: int, seed: int, *more: str) -> list[int]:
    """A search by local workers, each of which is killed once; returns the process ids that were killed."""
    command = [sys.executable, "-m", "experiments.cli", "search", "tuned", "launcher=local", "launcher.cores=16"]
    command += [f"search.workers={workers}", f"search.trials={trials}", "train.step_s=0.01", *more, *QUIET]
    environment = {**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=store.parent, stdout=subprocess.PIPE, text=True)
    killed = drill.kill_workers(store, workers, seed, lambda: process.poll() is not None)
    output = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, output
    return killed


def test_a_killed_worker_loses_nothing(lab: Maskgit, store: Path) -> None:
    killed = run_with_kills(store, workers=2, trials=6, seed=0)
    assert len(killed) == 2
    drill.check(told(lab), store, 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_sixty_trials_with_every_worker_killed_once(lab: Maskgit, store: Path, seed: int) -> None:
    killed = run_with_kills(store, 4, 60, seed, f"search.seed={seed}")
    ratio, share = drill.check(told(lab), store, 60)
    print(f"seed {seed}: {len(killed)} workers killed, best / best of the grid {ratio:.4f}, {share:.1%} of its steps")
    assert len(killed) == 4 and ratio <= 1.01 and share <= 0.30


def test_a_request_to_end_is_saved_and_the_same_command_goes_on(lab: Maskgit, store: Path) -> None:
    command = [sys.executable, "-m", "experiments.cli", "search", "tuned", "launcher=local", "search.workers=1"]
    command += ["search.trials=2", "train.step_s=0.03", *QUIET]
    environment = {**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=store.parent, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(store.glob("logistic/*/attempts/*/checkpoints/state.json"))))
    process.send_signal(signal.SIGINT)
    assert "go on from what was saved" in process.communicate(timeout=120)[0] and process.returncode == 130
    assert told(lab)["trials"][0]["state"] == "running"
    done = lab("search", "tuned", "launcher=inline", "tracking.ship=false", "search.trials=2")
    assert done.returncode == 0 and "trial 0 is taken over" in done.stdout
    drill.check(told(lab), store, 2)


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cancelling_ends_the_workers(lab: Maskgit, store: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        "search",
        "tuned",
        "launcher=local",
        "train.step_s=0.05",
        *QUIET,
    ]
    environment = {**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=store.parent, stdout=subprocess.DEVNULL)
    wait_for(lambda: bool(list(store.glob("logistic/*/attempts/*/checkpoints/state.json"))))
    done: Done = lab("search", "tuned", "--cancel")
    assert "to end" in done.stdout, done.stdout + done.stderr
    assert process.wait(120) == 130
    assert "nobody works on it" in lab("search", "tuned", "--status").stdout
