"""Drills on a real SLURM: what comes back by itself, with what, and what does not (`resources.<step>.retry`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, digests, new_cluster, step_folder, wait_until

pytest_plugins = ["slurm_fixtures"]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

FEW = ("experiment=chain", "numbers.count=4")
POLICY = "resources.numbers.retry"


def tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def retries(store: Path) -> list[dict[str, object]]:
    """What job scripts noted before they ran a job again."""
    paths = sorted(store.glob("slurm/*/*/retries/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def tries(store: Path, name: str = "numbers") -> int:
    return len(list((step_folder(store, name) / "attempts").iterdir()))


def states(maskgit: Run, store: Path) -> dict[str, str]:
    done = maskgit("status", "--json", "--store", str(store))
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["state"] for row in json.loads(done.stdout)[0]["steps"]}


@pytest.mark.parametrize("requeue", ["scontrol", "chain"])
def test_out_of_memory_comes_back_with_more(cluster, store, on_slurm: Run, undisturbed, requeue: str) -> None:
    sweep = "numbers.scale=1.0,2.0"
    on_slurm(*FEW, sweep, "numbers.needs_mb=900", "resources.numbers.mem_gb=0.25", f"launcher.requeue={requeue}")
    cluster.idle()
    assert digests(store) == undisturbed(*FEW, sweep)
    assert [r["changes"] for r in retries(store)] == ["MinMemoryNode=512", "MinMemoryNode=1024"] * 2
    assert tries(store, "numbers[scale=1]") == tries(store, "numbers[scale=2]") == 3


def test_memory_grows_as_often_as_asked_and_no_further_than_a_node(cluster, store, on_slurm, maskgit) -> None:
    oom = f"{POLICY}.oom={{mem_gb: +10, max: 2}}"
    on_slurm(*FEW, "numbers.needs_mb=900", "resources.numbers.mem_gb=0.25", f"{POLICY}.oom={{mem_gb: x1.5, max: 1}}")
    cluster.idle()
    assert [r["changes"] for r in retries(store)] == ["MinMemoryNode=384"]
    assert states(maskgit, store) == {"numbers": "killed", "total": "blocked"}
    on_slurm(*FEW, "numbers.needs_mb=90000", "resources.numbers.mem_gb=55", oom)
    cluster.idle()
    assert [r["changes"] for r in retries(store)][1:] == ["MinMemoryNode=64000"]


def test_an_error_of_its_own_is_tried_again_only_where_asked(cluster, store, on_slurm, maskgit) -> None:
    on_slurm(*FEW, "numbers.fail=crash")
    cluster.idle()
    assert states(maskgit, store)["numbers"] == "failed" and tries(store) == 1 and not retries(store)
    on_slurm(*FEW, "numbers.fail=crash", f"{POLICY}.own_error=2")
    cluster.idle()
    assert states(maskgit, store)["numbers"] == "failed" and tries(store) == 4
    on_slurm(*FEW, "numbers.fail=refuse", f"{POLICY}.own_error=2")
    cluster.idle()
    assert tries(store) == 5, "a request that cannot be met is never tried again"


def test_packed_steps_that_failed_by_themselves_stay_failed(cluster, store, on_slurm, maskgit, tmp_path) -> None:
    sweep = tmp_path / "conf" / "sweep" / "packed.yaml"
    sweep.parent.mkdir(parents=True)
    sweep.write_text("zip: {numbers.scale: [1.0, 2.0, 3.0], numbers.fail: [null, crash, null], "
                     "numbers.needs_mb: [0, 0, 400]}")  # fmt: skip
    on_slurm(*FEW, "sweep=packed", "--config-dir", str(tmp_path / "conf"), "resources.numbers.pack=3",
             "resources.numbers.mem_gb=0.25")  # fmt: skip
    cluster.idle()
    found = states(maskgit, store)
    assert sorted(found[name] for name in found if name.startswith("numbers")) == ["done", "done", "failed"]
    assert [r["reason"] for r in retries(store)] == ["oom"]
    assert sorted(len(list((path / "attempts").iterdir())) for path in store.glob("numbers/*")) == [1, 1, 2]


def test_a_full_disk_is_waited_for(cluster, store, on_slurm: Run, maskgit: Run, undisturbed, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        blocker = tool("sbatch", "--parsable", "-o", "/dev/null", "-N", "4", "--exclusive", "--wrap", "sleep 60")
        on_slurm("experiment=chain", "numbers.count=24", f"{POLICY}.disk_full={{wait_min: 0.1, max: 5}}")
        (step_folder(store, "numbers") / "parts").symlink_to(small)
        tool("scancel", blocker.strip())
        wait_until(lambda: retries(store))
        shown = maskgit("status", "--store", str(store)).stdout
        assert "disk is full" in shown, shown
        tool("mount", "-o", "remount,size=8m", str(small))
        cluster.idle()
        assert digests(store) == undisturbed("experiment=chain", "numbers.count=24")
    finally:
        tool("umount", "-l", str(small))


def test_a_lost_node_is_left_and_after_two_jobs_left_out(cluster: Cluster, store, on_slurm, undisturbed) -> None:
    for number, scale in enumerate(("1.0", "2.0")):
        on_slurm("experiment=chain", "numbers.count=8", "numbers.pause_s=0.5", f"numbers.scale={scale}")
        folder = step_folder(store, "numbers") if number == 0 else max(store.glob("numbers/*"), key=os.path.getctime)
        wait_until(lambda folder=folder: list((folder / "parts").glob("*.json")))
        job = json.loads((folder / "submitted.json").read_text())["links"][0]
        node = tool("squeue", "-h", "-j", job, "-o", "%N").strip()
        assert node == "127.0.1.1"
        tool("scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
        tool("scontrol", "update", f"nodename={node}", "state=resume")  # it is back at once, as good as before
        cluster.idle()
        said = [p.read_text() for p in store.glob("slurm/*/000/*log.out")]
        assert any(r["reason"] == "node_fail" and r["node"] == node for r in retries(store)), said
        ran = [path.read_text().split()[1] for path in sorted(folder.parents[1].glob("slurm/*/000/lives/*"))]
        assert ran[-1] != node, ran
    told = on_slurm("experiment=chain", "numbers.count=8", "numbers.scale=3.0")
    assert "127.0.1.1 lost 2 jobs within a day and is left out" in told.stdout
    job = json.loads(max(store.glob("numbers/*"), key=os.path.getctime).joinpath("submitted.json").read_text())
    assert "ExcNodeList=127.0.1.1\n" in tool("scontrol", "show", "job", job["links"][0]).replace(" ", "\n")
    cluster.idle()
    assert len(digests(store)) == 6


def test_a_node_that_lets_no_step_begin_is_left(cluster: Cluster, store, on_slurm, undisturbed) -> None:
    on_slurm(*FEW, """launcher.setup=['[ "$SLURMD_NODENAME" != 127.0.1.1 ] || exit 9']""")
    cluster.idle()
    assert digests(store) == undisturbed(*FEW)
    assert [r["reason"] for r in retries(store)][:1] == ["before"]
    assert [path.name for path in (store / "slurm" / "nodes").iterdir()] == ["127.0.1.1"]


@pytest.mark.parametrize("reason", ["preempted", "timeout"])
def test_what_is_not_to_be_continued_ends(cluster: Cluster, store, on_slurm, maskgit, reason: str) -> None:
    more = ["launcher.partition=low", "+launcher.sbatch.nodelist=127.0.1.3", "resources.numbers.cpus_per_task=4"]
    more = more if reason == "preempted" else ["resources.numbers.timeout_min=1", "launcher.signal_s=30"]
    slow = ("numbers.count=40", "numbers.pause_s=3" if reason == "timeout" else "numbers.pause_s=0.5")
    on_slurm("experiment=chain", *slow, *more, f"{POLICY}.{reason}=fail", "launcher.requeue=chain",
             "launcher.max_attempts=2")  # fmt: skip
    wait_until(lambda: list((step_folder(store, "numbers") / "parts").glob("*.json")))
    if reason == "preempted":
        tool("sbatch", "-o", "/dev/null", "-p", "high", "-w", "127.0.1.3", "-c", "4", "--wrap", "sleep 1")
    cluster.idle()
    assert tries(store) == 1 and digests(store) == {}
    assert states(maskgit, store)["numbers"] == "stopped"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster without accounting that ends what takes more memory than it asked for."""
    made = new_cluster(f"/tmp/mgo{os.getpid()}", 30025 + os.getpid() % 200 * 50, ACCT="0",
                       OVERRIDES="JobAcctGatherParams=OverMemoryKill")  # fmt: skip
    monkeypatch.setenv("SLURM_CONF", str(made.folder / "slurm.conf"))
    yield made
    made.script("stop.sh")


def test_memory_that_was_really_taken(counted: Cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    slow = ("experiment=chain", "numbers.count=20")
    on_slurm(*slow, "numbers.pause_s=0.5", "numbers.holds_mb=400", "resources.numbers.mem_gb=0.35")
    counted.idle()
    assert digests(store) == undisturbed(*slow)
    assert [r["reason"] for r in retries(store)][:1] == ["oom"]


def test_jobs_tell_of_failures_and_the_end_once(cluster: Cluster, store, on_slurm, tmp_path: Path) -> None:
    """Nobody but jobs is there to tell; what is run again is no failure; of several last steps one tells of the end."""
    told = tmp_path / "told.txt"
    sweep = tmp_path / "conf" / "sweep" / "mixed.yaml"
    sweep.parent.mkdir(parents=True)
    sweep.write_text("zip: {numbers.scale: [1.0, 2.0, 3.0], numbers.fail: [null, crash, null], "
                     "numbers.needs_mb: [0, 0, 400]}")  # fmt: skip
    command = f'echo "$MASKGIT_EVENT|$MASKGIT_STEP|$MASKGIT_LINE" >> {told}'
    on_slurm(*FEW, "sweep=mixed", "--config-dir", str(tmp_path / "conf"), f"notify.command='{command}'",
             "resources.numbers.mem_gb=0.25")  # fmt: skip
    cluster.idle()
    assert sorted(told.read_text().splitlines()) == [
        "ended||4 done, 1 failed, 1 blocked",
        "failed|numbers[scale=2,fail=crash,needs_mb=0]|RuntimeError: asked to crash",
    ]


def test_what_was_used_is_suggested_next_time(cluster, store, on_slurm: Run, maskgit: Run, lab: Run) -> None:
    """MaxRSS and elapsed of slurmdbd: shown by `status --usage`, and what `plan` suggests for the next run."""
    asked = ("resources.numbers.mem_gb=16", "resources.numbers.timeout_min=300", "numbers.holds_mb=1500")
    on_slurm(*FEW, "numbers.pause_s=1", *asked)
    cluster.idle()

    def used() -> float:
        told = maskgit("status", "--usage", "--store", str(store)).stdout
        found = re.search(r"numbers +\d+ +completed .* (\d+) MB +16384 MB", told)
        return float(found[1]) if found else 0.0

    wait_until(lambda: used() > 1500, 60)
    told = lab("plan", "launcher=dev_cluster", *FEW, "numbers.scale=3.0", *asked).stdout
    suggested = re.search(r"resources.numbers: .* mem_gb: (\d+) \(asked: 16.*timeout_min: 5 \(asked: 300", told)
    assert suggested and 2 < int(suggested[1]) < 8, told
