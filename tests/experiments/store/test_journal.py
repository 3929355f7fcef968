"""The journal: nothing logged is lost to a slow or full disk, torn ends are passed over, resumes leave no zigzag."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracked_store import TrackedStore, lines

from experiments.store import journal as module
from experiments.store.journal import Journal, Line, curves, merge, read_lines, read_points


def step_folder(tmp_path: Path, attempts: int = 1) -> list[Path]:
    found = []
    for number in range(1, attempts + 1):
        own = tmp_path / "attempts" / f"{number:04d}"
        own.mkdir(parents=True)
        found.append(own / "journal.jsonl")
    return found


def pairs(tmp_path: Path, metric: str = "loss") -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in curves(read_points(tmp_path)).get(metric, [])]


def test_every_value_comes_back_as_it_was(tmp_path):
    (path,) = step_folder(tmp_path)
    values = {"a": 0.1, "b": -0.0, "c": 1e-300, "big": 2.0**70, "inf": math.inf, "low": -math.inf, "nan": math.nan}
    with Journal(path) as journal:
        journal.log(values, 7)
    read = {p.metric: p.value for p in read_points(tmp_path)}
    assert {k: repr(v) for k, v in read.items()} == {k: repr(v) for k, v in values.items()}
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_the_time_of_a_point_is_fixed_when_it_is_logged(tmp_path):
    (path,) = step_folder(tmp_path)
    before = time.time_ns() // 1_000_000
    journal = Journal(path)
    journal.log({"x": 1}, 0)
    after = time.time_ns() // 1_000_000
    time.sleep(0.05)
    journal.close()
    assert before <= read_points(tmp_path)[0].time <= after


@given(cut=st.integers(0, 400), tail=st.binary(max_size=20))
def test_a_torn_end_costs_only_the_torn_line(tmp_path_factory, cut, tail):
    folder = tmp_path_factory.mktemp("torn")
    (path,) = step_folder(folder)
    lines(path, [(i, {"loss": float(i)}) for i in range(8)], 1000)
    whole = path.read_bytes()
    kept = whole[: min(cut, len(whole))]
    path.write_bytes(kept + tail.replace(b"\n", b""))
    assert pairs(folder) == [(i, float(i)) for i in range(kept.count(b"\n"))]
    with Journal(path) as journal:  # the same file goes on after the tear
        journal.log({"loss": 99.0}, 99)
    assert pairs(folder)[-1] == (99, 99.0)


def test_offsets_lead_on_where_reading_stopped(tmp_path):
    (path,) = step_folder(tmp_path)
    lines(path, [(0, {"a": 1.0}), (1, {"a": 2.0})], 1000)
    first, offset = read_lines(path)
    lines(path, [(2, {"a": 3.0})], 2000)
    more, end = read_lines(path, offset)
    assert [line.step for line in first] == [0, 1] and [line.step for line in more] == [2]
    assert end == path.stat().st_size == more[-1].end


def test_a_resume_replaces_what_came_after_its_step(tmp_path):
    one, two = step_folder(tmp_path, 2)
    lines(one, [(i, {"loss": 1.0}) for i in range(0, 60, 10)], 1000)
    lines(two, [(i, {"loss": 2.0}) for i in range(30, 90, 10)], 2000, resumed_at=30)
    assert pairs(tmp_path) == [(0, 1.0), (10, 1.0), (20, 1.0), *((i, 2.0) for i in range(30, 90, 10))]


def test_an_attempt_that_begins_anew_replaces_the_one_before(tmp_path):
    one, two = step_folder(tmp_path, 2)
    lines(one, [(i, {"loss": 1.0}) for i in range(50)], 1000)
    lines(two, [(i, {"loss": 2.0}) for i in range(5)], 2000)
    assert pairs(tmp_path) == [(i, 2.0) for i in range(5)]


def test_machine_metrics_survive_a_resume(tmp_path):
    one, two = step_folder(tmp_path, 2)
    lines(one, [(40, {"system/cpu": 5.0}), (1, {"loss": 1.0})], 1000)
    lines(two, [(80, {"system/cpu": 6.0}), (1, {"loss": 2.0})], 2000, resumed_at=0)
    assert pairs(tmp_path, "system/cpu") == [(40, 5.0), (80, 6.0)] and pairs(tmp_path) == [(1, 2.0)]


def test_a_zombie_that_goes_on_writing_does_not_count(tmp_path):
    store = TrackedStore(tmp_path)
    folder = store.step("train", "train", "model", {})
    first, second = store.attempt(folder, 1, at=1.0), store.attempt(folder, 2, at=2.0)
    lines(first / "journal.jsonl", [(0, {"loss": 1.0})], 1500)
    lines(first / "journal.jsonl", [(9, {"loss": 666.0})], 2500)
    lines(second / "journal.jsonl", [(1, {"loss": 2.0})], 2600, resumed_at=1)
    assert pairs(folder) == [(0, 1.0), (1, 2.0)]


def test_a_result_set_aside_takes_its_curve_with_it(tmp_path):
    one, two = step_folder(tmp_path, 2)
    lines(one, [(5, {"loss": 1.0})], 1000)
    (one.parent / "manifest.json").write_text("{}")
    lines(two, [(0, {"loss": 2.0})], 2000)
    assert pairs(tmp_path) == [(0, 2.0)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), max_size=4))
def test_one_point_a_metric_and_step_whatever_happened(attempts):
    clock = 0
    written = []
    for lines_ in attempts:
        block = []
        for step, resumes in lines_:
            clock += 1
            block.append(Line(step, clock, {} if resumes else {"m": 1.0}, resumes))
        written.append(block)
    keys = [(p.metric, p.step) for p in merge(written)]
    assert len(keys) == len(set(keys))


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path, monkeypatch, capfd):
    (path,) = step_folder(tmp_path)
    real, room = os.write, [10]

    def write(descriptor, data):
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(module.os, "write", write)
    monkeypatch.setattr(module, "FLUSH_EVERY_S", 0.01)
    journal = Journal(path)
    for step in range(20):
        journal.log({"loss": float(step)}, step)
        journal.flush()
    assert pairs(tmp_path) == []  # ten bytes fit, no whole line
    room[0] = 10**9
    journal.close()
    assert pairs(tmp_path) == [(i, float(i)) for i in range(20)]
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_a_folder_that_cannot_be_made_only_warns(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal.jsonl", attempt=3)
    journal.log({"loss": 1.0}, 0)
    journal.close()
    journal.log({"loss": 1.0}, 1)
    assert capfd.readouterr().err.count("attempt 3") == 1


CHILD = """
import os, sys
from pathlib import Path
from experiments.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(1000):
    journal.log({"loss": float(i)}, i)
if sys.argv[2] == "fork":
    if os.fork() == 0:
        journal.log({"loss": -1.0}, 5000)
        journal.close()
        os._exit(0)
    os.wait()
elif sys.argv[2] == "kill":
    journal.flush()
    print("flushed", flush=True)
    import time; time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", "fork"])
def test_an_interpreter_that_ends_writes_what_is_left_and_forks_add_nothing(tmp_path, end):
    (path,) = step_folder(tmp_path)
    subprocess.run([sys.executable, "-c", CHILD, str(path), end], check=True, timeout=60)
    assert pairs(tmp_path) == [(i, float(i)) for i in range(1000)]


def test_what_was_flushed_survives_sigkill(tmp_path):
    (path,) = step_folder(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "kill"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "flushed\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(pairs(tmp_path)) == 1000


def test_the_journal_imports_no_tracker_and_no_torch():
    code = (
        "import sys, experiments.store.journal;print(sorted({'torch', 'mlflow', 'numpy', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
