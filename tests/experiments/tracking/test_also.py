"""`tracking.also`: the journals' points and the scores as TensorBoard's event files and as offline runs of W&B."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LAB, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.launching.prepare import prepare
from experiments.planning.graph import store_of
from experiments.planning.pipeline import build
from experiments.planning.plan import Planner
from experiments.running.job import main
from experiments.tracking.windows import mirror
from maskgit_core.errors import ConfigError, TrackingError


def run(store: Path, *overrides: str) -> None:
    graph = build(["experiment=rates", f"paths.store={store}", *overrides], [LAB])
    steps = Planner(graph).plan()
    prepare(graph, steps, store_of(graph))
    assert {main(str(s.node.folder)) for s in steps} == {0}


def test_points_and_scores_are_read_back(store: Path) -> None:
    run(store, "train.lr=0.1,0.3", "tracking.also=[tensorboard]")
    assert mirror(store) == 4 and mirror(store) == 0, "nothing new, nothing written"
    (train,) = store.glob("tensorboard/rates/*/train[[]lr=0.1[]]")
    read = EventAccumulator(str(train)).Reload()
    losses = read.Scalars("loss")
    assert [e.step for e in losses] == list(range(20)) and losses[0].value > losses[-1].value
    (evaluate,) = store.glob("tensorboard/rates/*/evaluate[[]lr=0.1[]]")
    assert EventAccumulator(str(evaluate)).Reload().Scalars("fd_toy")[0].value == pytest.approx(0.0345876, rel=1e-3)


def test_nothing_is_written_unless_asked_for_and_other_names_are_refused(store: Path) -> None:
    run(store, "train.lr=0.1")
    assert mirror(store) == 0 and not (store / "tensorboard").exists()
    assert mirror(store, ["tensorboard"]) == 2 and (store / "tensorboard").exists(), "asked for all runs at once"
    with pytest.raises(ConfigError, match=r"tracking\.also"):
        build(["experiment=rates", f"paths.store={store}", "tracking.also=[neptune]"], [LAB])


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: after 7 bytes, blocks of 32 KiB of parts (crc, length, kind: 1 whole)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def items(pieces: Any) -> dict[str, Any]:
    return {piece.key or "/".join(piece.nested_key): json.loads(piece.value_json) for piece in pieces}


def test_a_step_is_an_offline_run_of_wandb(store: Path) -> None:
    pytest.importorskip("wandb")
    run(store, "train.lr=0.1", "tracking.also=[wandb]")
    assert mirror(store) == 2 and mirror(store) == 0, "nothing new, nothing written"
    (file,) = store.glob("wandb/rates/*/train*/wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(file))
    (head,) = (r.run for r in records if r.HasField("run"))
    assert (head.project, head.display_name, head.job_type) == ("rates", "train", "descent")
    rows = [items(r.history.item) for r in records if r.HasField("history")]
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == list(range(20)) and losses[0]["loss"] > losses[-1]["loss"]
    assert abs(losses[0]["_timestamp"] - time.time()) < 600, "the time in the journal, in seconds"
    (file,) = store.glob("wandb/rates/*/evaluate*/wandb/offline-run-*/run-*.wandb")
    summary = [items(r.summary.update) for r in wandb_records(file) if r.HasField("summary")]
    assert any(s.get("fd_toy") == pytest.approx(0.0345876, rel=1e-3) for s in summary)


def test_a_step_that_still_runs_waits(store: Path) -> None:
    run(store, "train.lr=0.1", "tracking.also=[wandb]")
    (folder,) = (path.parent for path in store.glob("descent/*/manifest.json"))
    (folder / "claim.json").write_text("{}")
    assert mirror(store) == 1 and not list(store.glob("wandb/rates/*/train*"))


def test_a_window_that_is_not_installed_keeps_no_other_from_its_numbers(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, "train.lr=0.1", "tracking.also=[tensorboard,wandb]")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingError, match=r"wandb is not installed; pip install wandb"):
        mirror(store)
    assert len(list(store.glob("tensorboard/rates/*/*/events*"))) == 2


def test_sync_follow_writes_the_other_windows_too(store: Path) -> None:
    run(store, "train.lr=0.1", "tracking.also=[tensorboard]")
    follower = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "sync", "--follow", "--every", "0.2", "--store", str(store)], cwd=ROOT
    )
    try:
        until = time.monotonic() + 120
        while len(list(store.glob("tensorboard/rates/*/*/events*"))) < 2:
            assert time.monotonic() < until and follower.poll() is None
            time.sleep(0.2)
    finally:
        follower.terminate()
        assert follower.wait(60) == 0
