"""Status and failures: folded sweeps, the first cause among ranks, suspect nodes, the questions put to squeue."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.commands.status import _lines, folded
from experiments.monitoring.failures import failures
from experiments.monitoring.queue import exit_note
from experiments.running.progress import Progress
from experiments.store.documents import Launch, Request, Submission
from experiments.store.records import PipelineRecord, PipelineStep
from launchers.cluster.queue import Queue
from maskgit_core.files import write_json


def row(name: str, state: str, reason: str = "", seconds: float | None = None) -> dict[str, Any]:
    return {"name": name, "state": state, "reason": reason, "seconds": seconds, "job": None, "headline": None,
            "progress": None}  # fmt: skip


def test_a_large_sweep_is_folded_and_counted() -> None:
    steps = [row(f"train[lr={i}]", "done", seconds=10.0) for i in range(2000)]
    steps += [row("train[lr=a]", "failed", "no data"), row("train[lr=b]", "running", seconds=3.0)]
    steps += [row(f"sample[lr={i}]", "failed", "same reason") for i in range(50)]
    record = PipelineRecord(uid="20260101-000000-aaaaaaaa", experiment="big", time=0.0, steps=())
    text = "\n".join(_lines([(record, steps)], Path("runs")))
    assert len(text.splitlines()) < 10
    assert re.search(r"train x 2000 +done +10s +mean time", text) and "train[lr=a]" in text and "train[lr=b]" in text
    assert re.search(r"sample x 50 +failed.* same reason", text)
    assert text.splitlines()[-1] == "  2052 steps: 2000 done, 51 failed, 1 running; --all shows every row"
    every = "\n".join(_lines([(record, steps)], Path("runs"), every_row=True))
    assert len(every.splitlines()) == 2052 + 3 and "2052  sample[lr=49]" in every
    assert folded(steps[:60]) == steps[:60]


def test_a_training_prints_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(100, unit="step")
    progress.start_at(20)
    progress.update(30)
    progress.line(loss=2.34567, lr=1e-4)
    assert re.fullmatch(
        r"step 50/100  loss 2.346  lr 0.0001  \S+ steps/s  (\S+ GB  )?\S+ left\n", capsys.readouterr().out
    )


@pytest.fixture
def step(store: Path) -> Path:
    """A step with a submission, whose job's notes the tests write."""
    folder = store / "train" / "x-00000000"
    request = Request(fingerprint="0" * 64, stage="train", module="", version=1, kind="model", config={})
    request.write(folder)
    Launch(name="train", step="train", experiment="one", pipeline="uid").write(folder)
    Submission(links=("7",), pipeline="uid").write(folder)
    entry = PipelineStep(name="train", step="train", stage="train", kind="model", fingerprint="0" * 64,
                         folder="train/x-00000000")  # fmt: skip
    PipelineRecord(uid="uid", experiment="one", time=0.0, steps=(entry,)).save(store)
    write_json(store / "slurm" / "uid" / "000" / "batch.json", {"tasks": [[{"key": "0" * 64}]]})
    (folder / "attempts" / "0001").mkdir(parents=True)
    write_json(folder / "attempts" / "0001" / "start.json", {"time": 1.0})
    return folder


def note(store: Path, name: str, **keys: Any) -> None:
    full = {"code": 1, "message": "exit code 1", "job": "7", "node": "n1", "rank": 0, "time": 10.0, **keys}
    write_json(store / "slurm" / "uid" / "000" / "ends" / f"0-0{name}.json", full)


def found(store: Path) -> Any:
    record = PipelineRecord.of(store, "uid")
    assert record is not None
    (failure,) = failures(record, store)
    return failure


def test_a_killed_rank_is_the_cause_of_what_the_others_say(step: Path, store: Path) -> None:
    end = {
        "state": "failed",
        "reason": "RuntimeError: gloo",
        "traceback": "...\nRuntimeError: connection closed by peer",
    }
    write_json(step / "attempts" / "0001" / "end.json", end)
    note(store, "", time=9.0)
    note(store, ".rank1", time=9.5, rank=1, node="n2")
    note(store, ".rank2", code=-9, message="killed by SIGKILL (out of memory?)", time=10.0, rank=2, node="n3")
    failure = found(store)
    assert (failure.line, failure.node) == ("rank 2: killed by SIGKILL (out of memory?)", "n3")
    assert failure.reason == "killed"


def test_the_earliest_error_of_several_ranks_counts(step: Path, store: Path) -> None:
    write_json(step / "attempts" / "0001" / "end.json", {"state": "failed", "reason": "RuntimeError: gloo"})
    write_json(step / "attempts" / "0001" / "end-rank3.json", {"state": "failed", "traceback": "...\nKeyError: 'x'"})
    note(store, "", time=12.0)
    note(store, ".rank3", time=11.0, rank=3, node="n4")
    failure = found(store)
    assert (failure.line, failure.node, failure.reason) == ("rank 3: KeyError: 'x'", "n4", "own error")


def test_only_nodes_that_may_be_the_reason_are_named(step: Path, store: Path, maskgit: Any) -> None:
    write_json(step / "attempts" / "0001" / "end.json", {"state": "failed", "reason": "ValueError: bad value"})
    note(store, "")
    assert maskgit("failures", "--nodes").stdout == "\n", "an error of the step's own blames no node"
    note(store, "", code=-9, message="killed by SIGKILL (out of memory?)")
    assert maskgit("failures", "--nodes").stdout == "n1\n"


def test_a_preempted_job_that_slurm_did_not_give_back_is_a_failure(step: Path, store: Path) -> None:
    write_json(step / "attempts" / "0001" / "end.json", {"state": "stopped", "reason": "asked to stop; state saved"})
    note(store, "", code=143, message="exit code 143")
    record = PipelineRecord.of(store, "uid")
    assert record is not None and failures(record, store) == []
    (store / "slurm" / "uid" / "000" / "preempted-0-0-0").touch()
    assert found(store).reason == "preemption"
    told = exit_note(step, store)
    assert told is not None and told["preempted"]


def test_squeue_is_asked_for_the_jobs_of_interest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "squeue"
    tool.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\necho '7_1|RUNNING|None|n1|me|x'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    queue = Queue()
    queue.include(["7_1", "7_2", "9"])
    assert queue.find("7_1") is not None and queue.find("7_2") is None and queue.find("9") is None
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 1 and asked[0].endswith("-j 7,9")
    assert json.dumps(queue.known() is not None) == "true"
