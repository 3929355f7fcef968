"""The inline and local launchers with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launchers.calls import Call, Event, Resources, topological
from launchers.inline import Launcher as Inline
from launchers.local import Launcher as Local
from maskgit_core.errors import LaunchError

WORK = textwrap.dedent(
    """
    import json, os, signal, socket, subprocess, sys, time
    from pathlib import Path

    def record(folder, name, code=0):
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
                 "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MASKGIT_LAUNCH_ID"]
        note = {key: os.environ.get(key) for key in names} | {"pid": os.getpid(), "time": time.time()}
        Path(folder, f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(note))
        print("said by", name, flush=True)
        return code

    def meet(folder, name):
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if rank == 0:
            server, got = socket.create_server(address), {0}
            while len(got) < world:
                link, _ = server.accept()
                got.add(int(link.recv(8)))
            Path(folder, name).write_text(json.dumps(sorted(got)))
            return 0
        for _ in range(400):
            try:
                link = socket.create_connection(address)
                break
            except OSError:
                time.sleep(0.02)
        link.sendall(str(rank).encode())
        return 0

    def overlap(folder, name, other):
        Path(folder, name).touch()
        for _ in range(400):
            if Path(folder, other).exists():
                return 0
            time.sleep(0.02)
        return 1

    def hang(folder, name):
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        Path(folder, f"{name}.{os.environ['RANK']}.pids").write_text(f"{os.getpid()} {worker.pid}")
        time.sleep(300)

    def stubborn(folder, name):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return hang(folder, name)

    def crash_on_one(folder, name):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return hang(folder, name)

    def later(folder, name, times):
        count = Path(folder, name)
        count.write_text(count.read_text() + "x" if count.exists() else "x")
        return 75 if len(count.read_text()) < times else 0

    def saving(folder, name):
        signal.signal(signal.SIGTERM, lambda *_: Path(folder, name + ".saved").touch() or sys.exit(143))
        Path(folder, f"{name}.ready{os.environ['RANK']}").touch()
        time.sleep(300)

    def raising(folder, name):
        raise RuntimeError("broken on purpose")
    """
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = "launched_work"
    (tmp_path / f"{name}.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop(name, None)
    yield tmp_path
    sys.modules.pop(name, None)


def call(folder: Path, key: str, function: str, *args: object, needs: tuple[str, ...] = (), **resources: int) -> Call:
    return Call(
        key=key,
        name=key,
        target=f"launched_work:{function}",
        args=[str(folder), key, *args],
        log=folder / "logs" / f"{key}.txt",
        needs=needs,
        resources=Resources(**resources),
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pids_of(folder: Path, pattern: str = "*.pids") -> list[int]:
    return [int(pid) for path in folder.glob(pattern) for pid in path.read_text().split()]


def note(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


@pytest.mark.parametrize("launcher", [Inline(), Local(cores=2, gpus=0)], ids=["inline", "local"])
def test_a_failure_blocks_what_needs_it_and_nothing_else(work: Path, launcher: Inline | Local) -> None:
    calls = [
        call(work, "c", "record", needs=("b",)),
        call(work, "a", "record"),
        call(work, "b", "raising", needs=("a",)),
        call(work, "d", "record", needs=("a", "finished earlier")),
        call(work, "e", "record", needs=("c", "d")),
    ]
    events: list[Event] = []
    outcomes = launcher.launch(calls, on_event=events.append)
    states = {key: outcome.state for key, outcome in outcomes.items()}
    assert states == {"a": "done", "b": "failed", "c": "blocked", "d": "done", "e": "blocked"}
    assert outcomes["b"].exit_code == 1
    assert "broken on purpose" in (work / "logs/b.txt").read_text()
    assert "said by d" in (work / "logs/d.txt").read_text()
    assert note(work, "a")["time"] <= note(work, "d")["time"]
    assert not (work / "c.0.json").exists()
    told = [(event.kind, event.call.key) for event in events]
    assert told.index(("finished", "a")) < told.index(("started", "d"))
    assert {("failed", "b"), ("blocked", "c"), ("blocked", "e"), ("finished", "d")} <= set(told)


def test_inline_takes_its_variables_back(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Inline().launch([call(work, "a", "record", ranks=3)])
    assert (note(work, "a")["RANK"], note(work, "a")["WORLD_SIZE"]) == ("0", "1")
    assert os.environ["RANK"] == "7" and "WORLD_SIZE" not in os.environ


def test_ranks_get_a_rendezvous_and_one_launch_id(work: Path) -> None:
    calls = [call(work, "met", "meet", ranks=3, cpus_per_task=2), call(work, "n", "record", ranks=2, cpus_per_task=3)]
    outcomes = Local(cores=1, gpus=0).launch(calls)
    assert {outcome.state for outcome in outcomes.values()} == {"done"}
    assert json.loads((work / "met").read_text()) == [0, 1, 2]
    notes = [note(work, "n", rank) for rank in (0, 1)]
    assert [n["LOCAL_RANK"] for n in notes] == ["0", "1"]
    assert {n["OMP_NUM_THREADS"] for n in notes} == {"3"}
    assert notes[0]["MASKGIT_LAUNCH_ID"] == notes[1]["MASKGIT_LAUNCH_ID"] != ""
    assert "said by n" in (work / "logs/n.rank1.txt").read_text()


def test_independent_calls_run_side_by_side_within_the_cores(work: Path) -> None:
    pair = [call(work, "a", "overlap", "b"), call(work, "b", "overlap", "a")]
    assert {o.state for o in Local(cores=2, gpus=0).launch(pair).values()} == {"done"}
    running: set[str] = set()
    most = 0

    def watch(event: Event) -> None:
        nonlocal most
        running.add(event.call.key) if event.kind == "started" else running.discard(event.call.key)
        most = max(most, len(running))

    Local(cores=3, gpus=0).launch([call(work, k, "record", cpus_per_task=2) for k in "pqr"], on_event=watch)
    assert most == 1


def test_gpus_are_handed_out_and_never_shared(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    calls = [
        call(work, "pair", "record", ranks=2, gpus_per_task=1),
        call(work, "one", "record", gpus_per_task=1),
        call(work, "none", "record"),
    ]
    outcomes = Local(cores=8).launch(calls)
    assert {o.state for o in outcomes.values()} == {"done"}
    assert note(work, "pair", 0)["CUDA_VISIBLE_DEVICES"] == note(work, "pair", 1)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert note(work, "one")["CUDA_VISIBLE_DEVICES"] == "6"
    assert note(work, "none")["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(LaunchError, match=r"resources\.big: 4 GPUs asked for, this machine has 3"):
        Local(cores=8).launch([call(work, "big", "record", ranks=4, gpus_per_task=1)])


def test_a_crashed_rank_ends_the_others_with_their_workers(work: Path) -> None:
    outcome = Local(cores=3, gpus=0).launch([call(work, "x", "crash_on_one", ranks=3)])["x"]
    assert (outcome.state, outcome.exit_code) == ("failed", -signal.SIGKILL)
    assert "rank 1: killed by SIGKILL" in outcome.message
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids_of(work)))


def test_a_call_that_saved_is_continued_and_not_for_ever(work: Path) -> None:
    outcomes = Local(cores=2, gpus=0, max_restarts=3).launch(
        [
            call(work, "twice", "later", 2),
            call(work, "endless", "later", 99),
            call(work, "then", "record", needs=("twice",)),
        ]
    )
    assert [outcomes[key].state for key in ("twice", "endless", "then")] == ["done", "failed", "done"]
    assert ((work / "twice").read_text(), (work / "endless").read_text()) == ("xx", "xxxx")


DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from launchers.calls import Call, Resources
from launchers.local import Launcher
folder = Path({folder!r})
calls = [Call(key=k, name=k, target="launched_work:" + f, args=[{folder!r}, k], log=folder / "logs" / k,
              needs=tuple(n), resources=Resources(ranks=r)) for k, f, r, n in {calls!r}]
outcomes = Launcher(cores=4, gpus=0, grace_s={grace}).launch(calls)
(folder / "outcomes").write_text(json.dumps({{k: [o.state, o.exit_code] for k, o in outcomes.items()}}))
"""


def driver(folder: Path, calls: list[tuple], grace: float = 30.0) -> subprocess.Popen[bytes]:
    code = DRIVER.format(folder=str(folder), calls=calls, grace=grace)
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_calls_save_and_leaves_nothing(work: Path, number: int) -> None:
    calls = [("a", "saving", 2, []), ("b", "stubborn", 1, []), ("c", "record", 1, ["a"])]
    process = driver(work, calls, grace=1.0)
    assert wait_until(lambda: len(list(work.glob("a.ready*"))) == 2 and len(pids_of(work)) == 2)
    process.send_signal(number)
    assert process.wait(30) == 0
    outcomes = json.loads((work / "outcomes").read_text())
    assert outcomes == {"a": ["stopped", 143], "b": ["stopped", -signal.SIGKILL], "c": ["stopped", 0]}
    assert (work / "a.saved").exists()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids_of(work)))


def test_nothing_outlives_a_killed_launcher(work: Path) -> None:
    process = driver(work, [("a", "hang", 2, []), ("b", "stubborn", 1, [])])
    assert wait_until(lambda: len(pids_of(work)) == 6)
    pids = pids_of(work)
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_requests_that_cannot_be_met_are_refused(work: Path) -> None:
    a, b = call(work, "a", "record", needs=("b",)), call(work, "b", "record", needs=("a",))
    with pytest.raises(LaunchError, match="a, b: these calls wait for each other"):
        topological([a, b])
    with pytest.raises(LaunchError, match="two calls have this key"):
        topological([a, a])
    with pytest.raises(LaunchError, match="3 processes cannot be spread evenly over 2 nodes"):
        Resources(ranks=3, nodes=2)
    outcome = Local(cores=1, gpus=0).launch([call(work, "x", "no_such_function")])["x"]
    assert (outcome.state, outcome.exit_code) == ("failed", 2)
    log = (work / "logs/x.txt").read_text()
    assert "launched_work:no_such_function: no such function" in log and "Traceback" not in log


def test_a_copy_of_the_output_is_dropped_without_a_word(tmp_path: Path) -> None:
    """Python 3.13 flushes a stream that it drops, after the log was closed, and told of a ValueError."""
    from launchers.inline import _Copied

    with open(tmp_path / "shown", "w") as shown, open(tmp_path / "log", "w") as kept:
        stream = _Copied(shown, kept)
        kept.close()
        stream.flush()
