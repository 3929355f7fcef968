"""Drills on a real SLURM: whatever happens, results equal an undisturbed run's and no job is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import LAB, ROOT, Cluster, attempts_of, digests, step_folder, wait_until

pytest_plugins = ["slurm_fixtures"]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SLOW = ("numbers.count=24", "numbers.pause_s=0.25")
FINAL = "resources.numbers.retry={oom: fail, disk_full: fail}"  # what comes back by itself: test_slurm_retries.py


def jobs_in(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+) +submitted +(\d+(?:_\d+)?)", text, re.MULTILINE))


def running(store: Path, name: str = "numbers", parts: int = 3) -> Path:
    """Waits until the step has published some parts; returns its folder."""
    folder = step_folder(store, name)
    wait_until(lambda: len(list((folder / "parts").glob("*.json"))) >= parts)
    return folder


def states(store: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "status", "--json", "--store", str(store)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["state"] for row in json.loads(done.stdout)[0]["steps"]}


def owner_pid(folder: Path) -> int:
    return int(json.loads((folder / "claim.json").read_text())["pid"])


def tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def finished(cluster: Cluster, store: Path) -> dict[str, str]:
    """What the store holds once nothing waits or runs any more."""
    cluster.idle(240)
    return digests(store)


@pytest.mark.parametrize("which", ["numbers", "total"])
def test_scancel_ends_a_step_and_nothing_restarts(cluster, store, on_slurm: Run, undisturbed, which: str) -> None:
    jobs = jobs_in(on_slurm("experiment=chain", *SLOW).stdout)
    running(store)
    tool("scancel", jobs[which])
    cluster.idle()
    time.sleep(2)
    found = states(store)
    assert found["total"] != "done" and not cluster.live()
    assert found["numbers"] == ("stopped" if which == "numbers" else "done")
    again = jobs_in(on_slurm("experiment=chain", *SLOW[:1]).stdout)
    assert set(again) == ({"numbers", "total"} if which == "numbers" else {"total"})
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])


def test_usr2_then_scancel_does_not_come_back(cluster, store, on_slurm: Run) -> None:
    jobs = jobs_in(on_slurm("experiment=chain", "numbers.count=40", "numbers.pause_s=1.5").stdout)
    running(store, parts=1)
    tool("scancel", "--signal=USR2", jobs["numbers"])
    tool("scancel", jobs["numbers"])
    cluster.idle()
    time.sleep(8)
    assert not cluster.live() and digests(store) == {}


def test_two_live_attempts_of_one_step(cluster, store, on_slurm: Run, lab: Run, undisturbed) -> None:
    """A local run asks for what a job is running: it waits for the job and takes over its result."""
    on_slurm("experiment=chain", *SLOW)
    running(store)
    local = lab("run", "launcher=local", "experiment=chain", *SLOW)
    assert local.returncode == 0, local.stderr
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
    assert set(attempts_of(store).values()) == {1}


def test_a_killed_process_fails_its_step_and_is_continued(cluster, store, on_slurm: Run, undisturbed) -> None:
    on_slurm("experiment=chain", *SLOW, FINAL)
    folder = running(store)
    os.kill(owner_pid(folder), signal.SIGKILL)
    cluster.idle()
    assert states(store) == {"numbers": "killed", "total": "blocked"}
    on_slurm("experiment=chain", *SLOW[:1])
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
    assert len(list((folder / "attempts").iterdir())) == 2


def test_the_supervisor_killed_takes_its_process_along(cluster, store, on_slurm: Run, undisturbed) -> None:
    on_slurm("experiment=chain", *SLOW, FINAL)
    folder = running(store)
    pid = owner_pid(folder)
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    cluster.idle()
    assert states(store) == {"numbers": "killed", "total": "blocked"}
    on_slurm("experiment=chain", *SLOW[:1])
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])


def test_a_time_limit_is_routine(cluster, store, on_slurm: Run, undisturbed) -> None:
    long = ("numbers.count=24", "numbers.pause_s=4")
    on_slurm("experiment=chain", *long, "resources.numbers.timeout_min=1")
    cluster.idle(400)
    assert digests(store) == undisturbed("experiment=chain", long[0])
    assert len(list((step_folder(store, "numbers") / "attempts").iterdir())) >= 2


@pytest.mark.parametrize("how", ["no grace", "grace with USR2", "grace with TERM only"])
def test_preemption_requeues(cluster: Cluster, store, on_slurm: Run, undisturbed, how: str) -> None:
    conf = cluster.folder / "slurm.conf"
    before = conf.read_text()
    try:
        if how == "grace with TERM only":
            conf.write_text(before.replace("SlurmctldParameters=", "#SlurmctldParameters="))
            tool("scontrol", "reconfigure")
        partition = "low0" if how == "no grace" else "low"
        node = ("+launcher.sbatch.nodelist=127.0.1.3", "resources.numbers.cpus_per_task=4")
        jobs = jobs_in(on_slurm("experiment=chain", *SLOW, f"launcher.partition={partition}", *node).stdout)
        folder = running(store)
        high = tool(
            "sbatch", "--parsable", "-o", "/dev/null", "-p", "high", "-w", "127.0.1.3", "-c", "4", "--wrap", "sleep 1"
        ).strip()
        wait_until(lambda: cluster.states().get(high) == "COMPLETED", 90)
        assert cluster.states()[jobs["numbers"]] in ("PENDING", "RUNNING", "COMPLETED")
        assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
        assert len(list((folder / "attempts").iterdir())) == 2
    finally:
        conf.write_text(before)
        tool("scontrol", "reconfigure")


def test_a_zombie_on_a_lost_node_publishes_nothing(cluster: Cluster, store, on_slurm: Run, undisturbed) -> None:
    jobs = jobs_in(on_slurm("experiment=chain", "numbers.count=24", "numbers.pause_s=2").stdout)
    folder = running(store, parts=2)
    node = tool("squeue", "-h", "-j", jobs["numbers"], "-o", "%N").strip()
    zombie = owner_pid(folder)
    cluster.script("node.sh", "zombie", node)
    try:
        tool("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        wait_until(lambda: (folder / "attempts" / "0002").exists(), 60)
        assert Path(f"/proc/{zombie}").exists()  # both live now
        cluster.idle(240)
        wait_until(lambda: not Path(f"/proc/{zombie}").exists(), 120)
    finally:
        cluster.script("node.sh", "restore", node)
    assert digests(store) == undisturbed("experiment=chain", "numbers.count=24")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["attempt"] == 2
    assert not (folder / "attempts" / "0001" / "files" / "numbers.json").exists()


def test_slurmctld_restarts(cluster: Cluster, store, on_slurm: Run, undisturbed) -> None:
    on_slurm("experiment=chain", *SLOW)
    running(store)
    pid = int((cluster.folder / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    time.sleep(2)
    found = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "status", "--store", str(store)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0 and "numbers" in found.stdout  # no answer from the queue is no error
    subprocess.run(["slurmctld"], env=os.environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: subprocess.run(["squeue", "-h"], capture_output=True).returncode == 0)
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
    assert set(attempts_of(store).values()) == {1}


@pytest.mark.parametrize("gone", ["slurmdbd", "sacct"])
def test_accounting_is_not_needed(cluster: Cluster, store, on_slurm: Run, lab: Run, tmp_path, gone: str) -> None:
    environment = {}
    if gone == "slurmdbd":
        os.kill(int((cluster.folder / "run" / "slurmdbd.pid").read_text()), signal.SIGTERM)
        time.sleep(1)
    else:
        bin_ = tmp_path / "bin"
        bin_.mkdir()
        (bin_ / "sacct").write_text("#!/bin/sh\nexit 127\n")
        (bin_ / "sacct").chmod(0o755)
        environment = {"PATH": f"{bin_}:{os.environ['PATH']}"}
    try:
        on_slurm("experiment=chain", "numbers.fail=crash", env=environment)
        cluster.idle()
        assert states(store) == {"numbers": "failed", "total": "blocked"}
        told = subprocess.run(
            [sys.executable, "-m", "experiments.cli", "failures", "--store", str(store)],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        assert told.returncode == 0 and "1 x own error: RuntimeError: asked to crash" in told.stdout, told
    finally:
        if gone == "slurmdbd":
            sock = {**os.environ, "MYSQL_UNIX_PORT": str(cluster.folder / "run" / "mysql.sock")}
            subprocess.run(["slurmdbd"], env=sock, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_jobs_do_not_notice_edits(cluster: Cluster, store: Path, undisturbed, tmp_path: Path) -> None:
    """Code and config change while a job waits, while it runs, and before its requeue; in the checkout it came from."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("maskgit_core", "experiments", "launchers", "conf", "pyproject.toml"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.gz", "*.xz", "*.npz")
        shutil.copytree(source, project / name, ignore=ignore) if source.is_dir() else shutil.copy(source, project)
    shutil.copytree(LAB.parent, project / "lab" / "toylab")
    git = ["git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    stage = project / "lab" / "toylab" / "stages" / "numbers.py"
    job = project / "experiments" / "running" / "job.py"
    blocker = tool("sbatch", "--parsable", "-o", "/dev/null", "-N", "4", "--exclusive", "--wrap", "sleep 60").strip()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", "launcher=dev_cluster", "tracking.ship=false",
         "experiment=chain", *SLOW, "--config-dir", str(project / "lab" / "toylab" / "conf")],
        capture_output=True, text=True, cwd=project,
        env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(project)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    original = stage.read_text()
    stage.write_text(original.replace("* scale", "* 7 * scale"))  # while it waits
    (project / "lab" / "toylab" / "conf" / "experiment" / "chain.yaml").write_text("broken: [")
    tool("scancel", blocker)
    folder = running(store)
    job.write_text("raise SystemExit('edited')")  # while it runs, and before its requeue
    stage.write_text("raise SystemExit('edited')")
    tool("scancel", "--signal=USR2", jobs_in(done.stdout)["numbers"])
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
    assert len(list((folder / "attempts").iterdir())) == 2
    record = json.loads((folder / "record.json").read_text())
    assert record["code"]["commit"] and record["code"]["digest"]


def test_a_full_disk_in_one_step(cluster, store, on_slurm: Run, undisturbed, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        blocker = tool(
            "sbatch", "--parsable", "-o", "/dev/null", "-N", "4", "--exclusive", "--wrap", "sleep 60"
        ).strip()
        on_slurm("experiment=chain", *SLOW[:1], FINAL)
        folder = step_folder(store, "numbers")
        (folder / "parts").symlink_to(small)
        tool("scancel", blocker)
        cluster.idle()
        assert states(store) == {"numbers": "failed", "total": "blocked"}
        end = json.loads(next(folder.glob("attempts/*/end.json")).read_text())
        assert "the disk is full" in end["reason"]
        tool("mount", "-o", "remount,size=8m", str(small))
        on_slurm("experiment=chain", *SLOW[:1])
        assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])
    finally:
        tool("umount", "-l", str(small))


def test_a_chain_of_jobs_where_requeue_is_forbidden(cluster, store, on_slurm: Run, undisturbed, tmp_path) -> None:
    chain = ("launcher.requeue=chain", "launcher.max_attempts=3")
    on_slurm("experiment=chain", *SLOW, *chain, "numbers.scale=1.0,2.0")
    for scale in ("1", "2"):
        running(store, f"numbers[scale={scale}]")
    note = json.loads((step_folder(store, "numbers[scale=1]") / "submitted.json").read_text())
    tool("scancel", "--signal=USR2", note["links"][0])
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0], "numbers.scale=1.0,2.0")
    tried = attempts_of(store)
    assert sorted(tried.values()) == [1, 1, 1, 2]
    assert len(note["links"]) == 3


def test_a_chain_stops_at_an_error_of_its_own(cluster, store, on_slurm: Run) -> None:
    on_slurm("experiment=chain", "numbers.fail=crash", "launcher.requeue=chain", "launcher.max_attempts=3")
    cluster.idle()
    assert states(store) == {"numbers": "failed", "total": "blocked"}
    assert len(list((step_folder(store, "numbers") / "attempts").iterdir())) == 1


def test_packed_tasks_try_all_their_items(cluster, store, on_slurm: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "conf" / "sweep" / "items.yaml"
    sweep.parent.mkdir(parents=True)
    sweep.write_text("zip: {numbers.scale: [1.0, 2.0, 3.0, 4.0], numbers.fail: [null, crash, null, null]}")
    told = on_slurm("experiment=chain", "sweep=items", "--config-dir", str(tmp_path / "conf"),
                    "resources.numbers.pack=2", "launcher.max_array_size=3").stdout  # fmt: skip
    jobs = jobs_in(told)
    assert jobs["numbers[scale=1,fail=None]"] == jobs["numbers[scale=2,fail=crash]"]
    assert len({job for name, job in jobs.items() if name.startswith("numbers")}) == 2
    assert len({job.partition("_")[0] for name, job in jobs.items() if name.startswith("total")}) == 2  # 3 + 1
    cluster.idle()
    assert sorted(states(store).values()) == ["blocked", *["done"] * 6, "failed"]


def test_restarts_without_progress_are_given_up(cluster, store, on_slurm: Run) -> None:
    stuck = ("numbers.count=3", "numbers.pause_s=30")
    jobs = jobs_in(on_slurm("experiment=chain", *stuck, "launcher.max_idle_restarts=1").stdout)
    folder = step_folder(store, "numbers")
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: (folder / "attempts" / f"{attempt:04d}" / "start.json").exists())
        tool("scancel", "--signal=USR2", jobs["numbers"])
        tool("scontrol", "requeue", jobs["numbers"])
    cluster.idle(120)
    told = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "failures", "--store", str(store)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "without any progress" in told.stdout, told.stdout
    assert digests(store) == {}


def test_submitting_from_inside_a_job(cluster, store: Path, undisturbed, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.cli", "run", "launcher=dev_cluster", "tracking.ship=false",
               "experiment=chain", SLOW[0], "--config-dir", str(LAB)]  # fmt: skip
    script = tmp_path / "outer.sh"
    line = " ".join(command)
    script.write_text(
        f"#!/bin/bash\n#SBATCH --array=3-3\n#SBATCH --output={tmp_path}/outer.txt\n"
        f"export PYTHONPATH={ROOT} MASKGIT_STORE={store}\nsrun {line}\n"
    )
    tool("sbatch", "--export=ALL", str(script))
    wait_until(lambda: (tmp_path / "outer.txt").exists() and "submitted 2" in (tmp_path / "outer.txt").read_text())
    assert finished(cluster, store) == undisturbed("experiment=chain", SLOW[0])


TWO_NODES = """\
# @package _global_
defaults:
  - /dataset: fashion_mnist_subset
  - /tokenizer: vq
  - /model: prenorm_tiny
  - _self_
  - /data: images
pipeline:
  steps:
    train_tokenizer: {stage: train_tokenizer}
    train: {stage: train}
train_tokenizer: {num_train_steps: 3, batch_size: 8, warmup_steps: 1}
train: {num_train_steps: 40, batch_size: 8, warmup_steps: 2, log_every: 1, lr: 1.0e-3}
resources:
  train_tokenizer: {cpus_per_task: 1, mem_gb: 2}
  train: {cpus_per_task: 1, mem_gb: 2}
"""


def losses(store: Path) -> dict[int, float]:
    """Optimizer step -> loss, over all attempts, the newest counting."""
    found = {}
    for journal in sorted(store.glob("train/*/attempts/*/journal.jsonl")):
        for line in map(json.loads, journal.read_text().splitlines()):
            if "loss" in line.get("metrics", {}):
                found[line["step"]] = line["metrics"]["loss"]
    return found


@pytest.mark.parametrize("signalled", [False, True], ids=["undisturbed", "USR2 on rank 1"])
def test_two_nodes_train_as_one_process_does(cluster, store, tmp_path: Path, signalled: bool) -> None:
    conf = tmp_path / "conf" / "experiment"
    conf.mkdir(parents=True)
    (conf / "two_nodes.yaml").write_text(TWO_NODES)
    common = ["run", "experiment=two_nodes", "tracking.ship=false", "--config-dir", str(tmp_path / "conf")]
    spread = ["launcher=dev_cluster", "resources.train.ranks=2", "resources.train.nodes=2"]
    other = tmp_path / "alone"
    for place, more in ((other, ["launcher=local"]), (store, spread)):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.cli", *common, *more], capture_output=True, text=True,
            env={**os.environ, "MASKGIT_STORE": str(place), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    if signalled:
        wait_until(lambda: len(losses(store)) > 3, 240)
        os.kill(process_of_rank(store, 1), signal.SIGUSR2)
    cluster.idle(300)
    alone, two = losses(other), losses(store)
    assert sorted(alone) == sorted(two) == list(range(1, 41))
    assert max(abs(alone[step] - two[step]) for step in alone) < 1e-5
    folder = step_folder(store, "train")
    assert len(list((folder / "attempts").iterdir())) == (2 if signalled else 1)
    assert list((folder / "logs").glob("*.rank1.txt"))


def process_of_rank(store: Path, rank: int) -> int:
    """The process that executes a rank of the step `train` of this store."""
    folder = str(step_folder(store, "train"))
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"launchers.entry" in command and folder.encode() in command and f"\0RANK={rank}\0".encode() in environment:
            children = (path / "task" / path.name / "children").read_text().split()
            if children or rank:
                return int(path.name)
    raise AssertionError(f"no process of rank {rank}")
