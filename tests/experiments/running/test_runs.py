"""Whole executions with real processes: what runs, what is reused, what a kill leaves, what a zombie cannot do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LAB, ROOT

from experiments.launching.prepare import prepare
from experiments.planning.graph import store_of
from experiments.planning.pipeline import build
from experiments.planning.plan import PlannedStep, Planner
from experiments.running.attempt import Attempt, SupersededError
from experiments.running.job import Job, clear_claim, main
from experiments.store.claims import SILENT_S, Claim, Owner, is_alive
from experiments.store.paths import StepFolder
from experiments.store.step_folder import status
from maskgit_core.files import read_json, write_json


def planned(store: Path, *overrides: str, experiment: str = "chain", redo: tuple[str, ...] = ()) -> list[PlannedStep]:
    graph = build([f"experiment={experiment}", f"paths.store={store}", *overrides], [LAB])
    return Planner(graph, redo=redo).plan()


def actions(steps: list[PlannedStep]) -> dict[str, str]:
    return {s.node.name: s.action for s in steps}


def execute(store: Path, *overrides: str, experiment: str = "chain") -> dict[str, int]:
    """Prepares and runs everything pending in this process, as the inline launcher would."""
    graph = build([f"experiment={experiment}", f"paths.store={store}", *overrides], [LAB])
    steps = Planner(graph).plan()
    prepare(graph, steps, store_of(graph))
    return {s.node.name: main(str(s.node.folder)) for s in steps if s.action != "done"}


def folder(store: Path, name: str, *overrides: str, experiment: str = "chain") -> Path:
    return next(s.node.folder for s in planned(store, *overrides, experiment=experiment) if s.node.name == name)


def start(store: Path, step: Path) -> subprocess.Popen[str]:
    """A real process that executes one prepared step."""
    code = "import sys; from experiments.running.job import main; raise SystemExit(main(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, str(step)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip


def wait_until(condition: Any, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def test_a_second_run_does_nothing(store: Path) -> None:
    assert execute(store) == {"numbers": 0, "total": 0}
    assert actions(planned(store)) == {"numbers": "done", "total": "done"}
    assert execute(store) == {}
    assert json.loads((folder(store, "total") / "files" / "total.json").read_text()) == 10.0


def test_the_plan_names_what_runs_and_why(store: Path) -> None:
    execute(store)
    steps = {s.node.name: s for s in planned(store, "total.weight=2")}
    assert steps["numbers"].action == "done"
    assert steps["total"].action == "run"
    assert "total.weight: 1.0 -> 2.0" in steps["total"].reason
    upstream = {s.node.name: s for s in planned(store, "numbers.count=6")}
    assert "numbers.count: 5 -> 6" in upstream["numbers"].reason
    assert "input numbers differs" in upstream["total"].reason


def test_an_upstream_rebuilt_the_same_reruns_nothing(store: Path) -> None:
    execute(store)
    before = read_json(folder(store, "total") / "manifest.json")
    shutil.rmtree(folder(store, "numbers"))
    assert actions(planned(store)) == {"numbers": "run", "total": "check"}
    execute(store)
    assert read_json(folder(store, "total") / "manifest.json") == before


def test_an_upstream_rebuilt_differently_reruns_what_depends_on_it(store: Path) -> None:
    execute(store)
    step = folder(store, "numbers")
    shutil.rmtree(step)
    graph = build(["experiment=chain", f"paths.store={store}"], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    (step / "parts").mkdir(exist_ok=True)
    (step / "parts" / "00000.json").write_text("100.0")  # the rebuilt result is another one
    assert main(str(step)) == 0
    steps = {s.node.name: s for s in planned(store)}
    assert steps["total"].action == "run" and steps["total"].reason == "input rebuilt: numbers"
    execute(store)
    assert json.loads((folder(store, "total") / "files" / "total.json").read_text()) == 110.0
    assert (folder(store, "total") / "attempts" / "0001" / "files" / "total.json").exists(), "the old result is kept"


def test_unfinished_work_from_an_input_rebuilt_since_is_dropped(store: Path) -> None:
    step = store / "total" / "unfinished-00000000"
    half = Attempt(step, 1)
    for place in (half.parts, half.checkpoints):
        (place / "half.bin").write_text("made from the old input")
    write_json(step / "made_from.json", {"upstream": "old"})
    Job(step)._set_aside_old_work({"upstream": "old"})
    assert (half.parts / "half.bin").exists() and (half.checkpoints / "half.bin").exists()
    Job(step)._set_aside_old_work({"upstream": "new"})
    assert not (half.parts / "half.bin").exists() and not (half.checkpoints / "half.bin").exists()
    assert read_json(step / "made_from.json") == {"upstream": "new"}


def test_killed_between_saying_done_and_publishing_it_runs_again(store: Path) -> None:
    execute(store)
    numbers = folder(store, "numbers")
    before = json.loads((numbers / "manifest.json").read_text())
    (numbers / "manifest.json").rename(numbers / ".manifest.json.0a1b2c3d.tmp")
    assert status(numbers).state == "killed"
    (step,) = (s for s in planned(store) if s.node.name == "numbers")
    assert step.action == "run" and "ended before it was published" in step.reason
    assert set(execute(store).values()) == {0}
    assert json.loads((numbers / "manifest.json").read_text())["digest"] == before["digest"]
    assert set(actions(planned(store)).values()) == {"done"}


def test_a_touched_output_is_refused_with_its_name(store: Path) -> None:
    execute(store)
    path = folder(store, "numbers") / "files" / "numbers.json"
    path.write_text(path.read_text().replace("1", "7", 1))
    with pytest.raises(Exception, match=r"numbers: .*numbers\.json: does not match .* --redo"):
        planned(store)
    assert actions(planned(store, redo=("numbers",)))["numbers"] == "run"


def test_copying_a_store_changes_nothing(store: Path, tmp_path: Path) -> None:
    execute(store)
    shutil.copytree(store, tmp_path / "copy", symlinks=True)
    assert set(actions(planned(tmp_path / "copy")).values()) == {"done"}


@pytest.mark.parametrize("moment", [0.1, 0.35, 0.6])
def test_sigkill_loses_only_the_unfinished_part(store: Path, tmp_path: Path, moment: float) -> None:
    slow = ("numbers.count=12", "numbers.pause_s=0.1")
    execute(tmp_path / "undisturbed", "numbers.count=12")
    graph = build(["experiment=chain", f"paths.store={store}", *slow], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    step = folder(store, "numbers", *slow)
    process = start(store, step)
    wait_until(lambda: len(list((step / "parts").glob("*.json"))) >= 1)
    time.sleep(moment)
    process.kill()
    process.wait()
    assert status(step).state == "killed"
    assert not (step / "manifest.json").exists()
    reason = next(s for s in planned(store, *slow) if s.node.name == "numbers").reason
    assert reason.startswith("attempt 1 killed")
    assert execute(store, *slow) == {"numbers": 0, "total": 0}
    for name in ("numbers", "total"):
        mine = read_json(folder(store, name, *slow) / "manifest.json")
        theirs = read_json(folder(tmp_path / "undisturbed", name, "numbers.count=12") / "manifest.json")
        assert mine is not None and theirs is not None
        assert mine["digest"] == theirs["digest"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 75)])
def test_signals_save_and_end_with_their_code(store: Path, number: int, code: int) -> None:
    slow = ("numbers.count=50", "numbers.pause_s=0.05")
    graph = build(["experiment=chain", f"paths.store={store}", *slow], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    step = folder(store, "numbers", *slow)
    process = start(store, step)
    wait_until(lambda: len(list((step / "parts").glob("*.json"))) >= 2)
    process.send_signal(number)
    assert process.wait(20) == code
    assert status(step).state == "stopped"
    assert not (step / "claim.json").exists()


def test_two_processes_build_a_shared_step_once(store: Path) -> None:
    slow = ("numbers.count=5", "numbers.pause_s=0.1")
    graph = build(["experiment=chain", f"paths.store={store}", *slow], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    step = folder(store, "numbers", *slow)
    both = [start(store, step) for _ in range(2)]
    outputs = [p.communicate(timeout=60)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert len(StepFolder(step).attempts()) == 1
    assert sum("waiting for" in text or "already done" in text for text in outputs) == 1


def test_a_zombie_publishes_nothing(store: Path) -> None:
    step = store / "numbers" / "zombie-00000000"
    old = Attempt(step, 1)
    Attempt(step, 2)
    with pytest.raises(SupersededError, match="superseded by attempt 2"):
        old.publish(old.files / "x.json", lambda path: path.write_text("1"))
    assert not (old.files / "x.json").exists()


def test_a_zombie_whose_claim_was_broken_cannot_mark_the_step_done(store: Path) -> None:
    slow = ("numbers.count=6", "numbers.pause_s=0.15")
    graph = build(["experiment=chain", f"paths.store={store}", *slow], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    step = folder(store, "numbers", *slow)
    zombie = start(store, step)
    wait_until(lambda: len(list((step / "parts").glob("*.json"))) >= 1)
    os.kill(zombie.pid, signal.SIGSTOP)
    claim = read_json(step / "claim.json")
    assert claim is not None
    (step / "claim.json").unlink()  # the cluster says its node is lost; a successor takes over
    assert main(str(step)) == 0
    manifest = read_json(step / "manifest.json")
    os.kill(zombie.pid, signal.SIGCONT)
    text, _ = zombie.communicate(timeout=60)
    assert zombie.returncode != 0, text
    assert read_json(step / "manifest.json") == manifest and manifest is not None and manifest["attempt"] == 2


def test_a_claim_is_broken_only_when_its_owner_is_dead(store: Path) -> None:
    step = store / "numbers" / "claimed-00000000"
    step.mkdir(parents=True)
    me = Owner.me()
    assert is_alive(me) is True
    assert is_alive(Owner(**{**vars(me), "pid_start": me.pid_start + 1})) is False, "the pid was reused"
    assert is_alive(Owner(**{**vars(me), "boot": "another"})) is False, "the machine was restarted"
    assert is_alive(Owner(**{**vars(me), "host": "elsewhere"})) is None, "cannot be told from here"
    assert is_alive(Owner(**{**vars(me), "job": "12", "host": "elsewhere"}), lambda *_: False) is False
    foreign = Owner(**{**vars(me), "host": "elsewhere"})
    write_json(step / "claim.json", {**vars(foreign), "token": "theirs"})
    assert Claim(step).take() == foreign
    dead = Owner(**{**vars(me), "pid_start": me.pid_start + 1})
    write_json(step / "claim.json", {**vars(dead), "token": "dead"})
    mine = Claim(step)
    assert mine.take() is None
    mine.release()
    assert not (step / "claim.json").exists()


def test_many_takers_get_one_claim(store: Path) -> None:
    step = store / "numbers" / "contested-00000000"
    step.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from experiments.store.claims import Claim;"
        "time.sleep(max(0, float(sys.argv[2]) - time.time())); c = Claim(Path(sys.argv[1]));"
        "print('got' if c.take() is None else 'no', flush=True); time.sleep(1.5)"
    )
    at = str(time.time() + 1.5)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([sys.executable, "-c", code, str(step), at], stdout=subprocess.PIPE, text=True, env=env)
            for _ in range(6)]  # fmt: skip
    said = [r.communicate(timeout=60)[0].strip() for r in runs]
    assert sorted(said) == ["got"] + ["no"] * 5


def test_a_failed_step_blocks_what_needs_it_and_nothing_else(store: Path, lab: Any) -> None:
    done = lab("run", "experiment=diamond", "twice.fail=crash", "launcher=local")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "RuntimeError: asked to crash" in done.stderr and "log: " in done.stderr
    assert "difference" in done.stdout.split("not run, since something they need failed: ")[1]
    found = json.loads(lab_status(lab, store))
    states = {s["name"]: s["state"] for s in found[0]["steps"]}
    assert states == {"numbers": "done", "once": "done", "twice": "failed", "difference": "blocked"}
    again = lab("run", "experiment=diamond", "launcher=local")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "numbers" not in again.stdout.split("steps: ")[1], "what was done is not run again"
    assert (
        json.loads((folder(store, "difference", experiment="diamond") / "files" / "difference.json").read_text())
        == 10.0
    )


def lab_status(lab: Any, store: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "experiments.cli", "status", "--json", "--store", str(store)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fan_in_gathers_all_points(store: Path) -> None:
    execute(store, experiment="fanin")
    step = folder(store, "all", experiment="fanin")
    assert json.loads((step / "files" / "total.json").read_text()) == 10.0 + 20.0 + 30.0
    assert len([s for s in planned(store, experiment="fanin") if s.node.request.name == "all"]) == 1


def test_code_drift_is_a_warning_not_a_rerun(store: Path) -> None:
    execute(store)
    step = folder(store, "numbers")
    record = read_json(step / "record.json")
    assert record is not None and record["science_files"]["toylab.stages.numbers"]
    record["science_files"]["toylab.stages.numbers"] = {"sha256": "0" * 64, "code": "0" * 64}
    write_json(step / "record.json", record)
    steps = {s.node.name: s for s in planned(store)}
    assert steps["numbers"].action == "done"
    assert "its code has changed since it ran (toylab.stages.numbers)" in steps["numbers"].warnings[0]


def test_redo_keeps_the_old_result(store: Path, lab: Any) -> None:
    execute(store)
    done = lab("run", "experiment=chain", "--redo", "total", "launcher=inline")
    assert done.returncode == 0, done.stdout + done.stderr
    step = folder(store, "total")
    assert [a.number for a in StepFolder(step).attempts()] == [1, 2]
    assert (step / "attempts" / "0001" / "manifest.json").exists()
    assert lab("plan", "experiment=chain", "--redo", "totla").returncode == 2


def test_adopting_a_step_of_another_store(store: Path, tmp_path: Path, lab: Any) -> None:
    execute(tmp_path / "other")
    source = folder(tmp_path / "other", "numbers")
    done = lab("adopt", str(source), "numbers", "experiment=chain")
    assert done.returncode == 0, done.stderr
    assert actions(planned(store)) == {"numbers": "done", "total": "run"}
    wrong = lab("adopt", str(folder(tmp_path / "other", "numbers")), "total", "experiment=chain")
    assert wrong.returncode == 2 and "holds numbers; total makes total" in wrong.stderr


def test_an_input_that_vanished_is_refused_when_the_job_starts(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = build(["experiment=chain", f"paths.store={store}"], [LAB])
    prepare(graph, Planner(graph).plan(), store_of(graph))
    assert Job(folder(store, "total")).run() == 2
    assert "the input numbers is not finished" in capsys.readouterr().err


def test_published_files_are_readable_by_the_group(store: Path) -> None:
    step = Attempt(store / "numbers" / "shared-00000000", 1)

    def private(path: Path) -> None:
        path.write_text("1")
        path.chmod(0o600)

    step.publish(step.files / "x.json", private)
    mask = os.umask(0o022)
    os.umask(mask)
    assert (step.files / "x.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_job_of_unknown_state_is_judged_by_its_signs_of_life(store: Path) -> None:
    """A job that the queue cannot tell (another cluster's, a hidden one) on another host: alive while it beats."""
    step = store / "numbers" / "claimed-00000000"
    step.mkdir(parents=True)
    owner = replace(Owner.me(), host="elsewhere", job="12", cluster="other")
    owner.write(step)
    asked: list[tuple[str, str, str]] = []

    def unknown(*job: str) -> None:
        asked.append(job)  # type: ignore[arg-type]

    assert Claim(step, unknown).take() == owner, "it has just been touched"
    assert asked == [("12", "other", owner.user)]
    old = time.time() - 3 * SILENT_S
    os.utime(step / "claim.json", (old, old))
    assert Claim(step, unknown).live_owner() is None
    replace(owner, cluster="").write(step)
    os.utime(step / "claim.json", (old, old))
    assert Claim(step, unknown).live_owner() is not None, "one of an earlier release never beats: it is waited for"
    Claim(step, unknown).break_dead()
    assert (step / "claim.json").exists()


def test_the_claim_of_a_killed_process_is_removed_by_whoever_watched_it(store: Path) -> None:
    step = store / "numbers" / "claimed-00000000"
    step.mkdir(parents=True)
    assert Claim(step).take() is None
    clear_claim(str(step), os.getpid() + 1)
    assert (step / "claim.json").exists()
    clear_claim(str(step), os.getpid())
    assert not (step / "claim.json").exists()
