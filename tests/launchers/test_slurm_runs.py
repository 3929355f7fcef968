"""The slurm launcher on a real SLURM: submit and forget, partial failure, requeue, cancel, orphans, bad requests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import LAB, ROOT, attempts_of, digests, step_folder, wait_until

pytest_plugins = ["slurm_fixtures"]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
pytestmark = pytest.mark.slurm


def jobs_in(text: str) -> dict[str, str]:
    """Step -> job id, from what `run` printed."""
    return dict(re.findall(r"^  (\S+) +submitted +(\d+(?:_\d+)?)", text, re.MULTILINE))


def start_run(store: Path, *overrides: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        "run",
        "launcher=dev_cluster",
        "tracking.ship=false",
        *overrides,
    ]
    return subprocess.Popen(
        [*command, "--config-dir", str(LAB)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT), **(env or {})},
    )


def test_a_sweep_outlives_its_submitter(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    process = start_run(store, "experiment=fanin", "numbers.pause_s=0.1")
    told = ""
    for line in process.stdout:
        told += line
        if line.startswith("submitted"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    jobs = jobs_in(told)
    assert len(jobs) == 7
    for stage in ("numbers", "total"):  # one array a stage
        assert len({job.partition("_")[0] for name, job in jobs.items() if name.startswith(f"{stage}[")}) == 1
    cluster.idle()
    assert digests(store) == undisturbed("experiment=fanin")
    record = json.loads((step_folder(store, "all") / "record.json").read_text())
    frozen = Path(record["code"]["digest"])
    assert (store / "code" / frozen / "experiments" / "running" / "job.py").is_file()
    again = on_slurm("experiment=fanin")
    assert "nothing to " in again.stdout and not cluster.live()


def test_a_bad_item_stops_only_its_own_chain(cluster, store: Path, on_slurm: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "conf" / "sweep" / "items.yaml"
    sweep.parent.mkdir(parents=True)
    base = ["experiment=chain", "sweep=items", "--config-dir", str(tmp_path / "conf")]
    sweep.write_text("zip: {numbers.scale: [1.0, 2.0, 3.0], numbers.fail: [null, crash, null]}")
    on_slurm(*base)
    cluster.idle()
    assert sorted(_states(store).values()) == ["blocked", "done", "done", "done", "done", "failed"]
    sweep.write_text("zip: {numbers.scale: [1.0, 2.0, 3.0], numbers.fail: [null, null, null]}")
    again = lab_free(store, "retry", "chain")  # the same command; it reads the mended sweep
    assert len(jobs_in(again.stdout)) == 2
    cluster.idle()
    assert set(_states(store).values()) == {"done"}


def _states(store: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "status", "--json", "--store", str(store)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return {row["name"]: row["state"] for row in json.loads(done.stdout)[0]["steps"]}


def test_usr2_requeues_and_what_needs_it_waits(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    jobs = jobs_in(on_slurm("experiment=chain", "numbers.count=12", "numbers.pause_s=0.25").stdout)
    parts = step_folder(store, "numbers") / "parts"
    wait_until(lambda: len(list(parts.glob("*.json"))) >= 2)
    subprocess.run(["scancel", "--signal=USR2", jobs["numbers"]], check=True)
    wait_until(lambda: cluster.states()[jobs["numbers"]] == "PENDING")
    assert _states(store) == {"numbers": "queued", "total": "queued"}
    cluster.idle()
    assert digests(store) == undisturbed("experiment=chain", "numbers.count=12")
    assert len(list((step_folder(store, "numbers") / "attempts").iterdir())) == 2
    assert len(list((step_folder(store, "total") / "attempts").iterdir())) == 1


def test_cancel_ends_what_only_it_needs(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    slow = ["numbers.count=60", "numbers.pause_s=0.25"]
    on_slurm("experiment=chain", *slow)
    on_slurm("experiment=diamond", *slow)
    parts = step_folder(store, "numbers") / "parts"
    wait_until(lambda: len(list(parts.glob("*.json"))) >= 2)
    kept = lab_free(store, "cancel", "diamond")  # its `once` is the total of the chain
    assert sorted(re.findall(r"^left alone (\w+): chain \(.*--force", kept.stdout, re.MULTILINE)) == ["numbers", "once"]
    assert sorted(re.findall(r"^cancelled (\w+)", kept.stdout, re.MULTILINE)) == ["difference", "twice"]
    rest = lab_free(store, "cancel", "chain")
    assert "cancelled numbers" in rest.stdout
    cluster.idle()
    assert digests(store) == {} and set(_states(store).values()) == {"cancelled"}
    on_slurm("experiment=diamond", *slow[:1])
    cluster.idle()
    assert digests(store) == undisturbed("experiment=diamond", *slow[:1])


def lab_free(store: Path, *arguments: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments, "--store", str(store)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "after",
    [pytest.param(1, id="first id lost", marks=pytest.mark.slow), pytest.param(2, id="between two sbatch calls")],
)
def test_a_killed_submission_leaves_nothing_twice(
    cluster, store: Path, on_slurm: Run, undisturbed, tmp_path: Path, after: int
) -> None:
    """The `after`-th real sbatch queues its job; then its caller is killed before it hears the id."""
    bin_, real = tmp_path / "bin", subprocess.check_output(["which", "sbatch"], text=True).strip()
    bin_.mkdir()
    shim = bin_ / "sbatch"
    shim.write_text(
        f'#!/bin/bash\ncase "$*" in *--test-only*) exec {real} "$@";; esac\n'
        f"n=$(cat {bin_}/n 2>/dev/null || echo 0); n=$((n+1)); echo $n >{bin_}/n\n"
        f'out=$({real} "$@"); [ $n = {after} ] && kill -9 $PPID; echo "$out"\n'
    )
    shim.chmod(0o755)
    process = start_run(store, "experiment=chain", env={"PATH": f"{bin_}:{os.environ['PATH']}"})
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(cluster.live()) == after  # held orphans
    done = on_slurm("experiment=chain")
    assert "was interrupted: now undone" in done.stdout
    cluster.idle()
    assert digests(store) == undisturbed("experiment=chain")
    assert set(attempts_of(store).values()) == {1}


def test_overlapping_submissions_share_what_they_share(cluster, store: Path, on_slurm: Run) -> None:
    both = [start_run(store, f"experiment={name}", "numbers.pause_s=0.1") for name in ("chain", "diamond", "chain")]
    told = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], told
    submitted = [name for text in told for name in jobs_in(text)]
    assert sorted(submitted) in (
        ["difference", "numbers", "once", "twice"],  # `once` of the diamond is the total of the chain
        ["difference", "numbers", "total", "twice"],
    )
    cluster.idle()
    assert len(digests(store)) == 4 and set(attempts_of(store).values()) == {1}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["launcher.partition=mian"], r"launcher\.partition: mian is no partition here; did you mean main\?"),
        (
            ["launcher.gpu_type=a100", "resources.numbers.gpus_per_task=1"],
            "gpu_type: no node in .* has a100",
        ),
        (["resources.numbers.gpus_per_task=5"], r"resources\.numbers\.gpus_per_task: 5 GPUs asked for on a node"),
        (
            ["launcher.partition=short", "resources.total.timeout_min=11"],
            r"resources\.total\.timeout_min: 11 minutes asked for, partition short allows 10",
        ),
        (["+launcher.sbatch.licenses=none"], r"resources\.\w+: SLURM refuses this job \("),
        (["resources.numbers.mem_gb=100000"], r"resources\.numbers\.mem_gb: 100000 asked for, the largest node"),
        (["launcher.colour=red"], r"launcher\.colour: unknown key"),
    ],
)
def test_bad_requests_are_one_line_and_queue_nothing(cluster, store: Path, on_slurm: Run, overrides, told) -> None:
    done = on_slurm("experiment=chain", *overrides, code=2)
    assert len(done.stderr.strip().splitlines()) == 1 and re.search(told, done.stderr), done.stderr
    assert not cluster.live() and not (store / "slurm" / "000").exists()


def test_a_store_or_an_artifact_that_is_gone_is_one_line(cluster, store: Path, on_slurm: Run) -> None:
    nowhere = on_slurm("experiment=chain", code=2, env={"MASKGIT_STORE": "/dev/null/store"})
    assert nowhere.stderr.startswith("error: /dev/null/store") and len(nowhere.stderr.splitlines()) == 1
    on_slurm("experiment=chain")
    cluster.idle()
    (step_folder(store, "numbers") / "files" / "numbers.json").unlink()
    gone = on_slurm("experiment=chain", "total.weight=3", code=2)
    assert "numbers.json: is missing" in gone.stderr and len(gone.stderr.splitlines()) == 1
    assert not cluster.live()


@pytest.mark.slow
def test_steps_that_all_items_share_run_once(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    sweep = ("experiment=diamond", "twice.weight=2.0,3.0,4.0", "numbers.scale=1.0,2.0")
    jobs = jobs_in(on_slurm(*sweep).stdout)
    stages = {name: {j.partition("_")[0] for s, j in jobs.items() if s.partition("[")[0] == name} for name in
              ("numbers", "once", "twice", "difference")}  # fmt: skip
    assert len(jobs) == 2 + 2 + 6 + 6 and all(len(ids) == 1 for ids in stages.values()), jobs
    cluster.idle()
    assert digests(store) == undisturbed(*sweep)
    assert set(attempts_of(store).values()) == {1}


@pytest.mark.slow
def test_doctor_tries_the_cluster(cluster, lab: Run, store: Path) -> None:
    told = lab("doctor", "experiment=chain", "launcher=dev_cluster")
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"ok +cluster: partition main: 4 nodes", told.stdout)
    assert re.search(r"ok +job: Python \S+ on 127\.0\.1\.\d imports what stages need", told.stdout)
    bad = lab("doctor", "experiment=chain", "launcher=dev_cluster", "resources.total.cpus_per_task=64")
    assert bad.returncode == 1
    assert re.search(r"FAIL +cluster: resources\.total\.cpus_per_task: 64 cores asked for", bad.stdout)


@pytest.mark.slow
def test_jobs_get_the_gpus_they_asked_for(cluster, store: Path, on_slurm: Run, lab: Run) -> None:
    """Two steps with two pretend GPUs each on a node of four see different ones; a step without sees none."""
    on_slurm("experiment=chain", "numbers.scale=1.0,2.0", "numbers.pause_s=0.5", "resources.numbers.gpus_per_task=2",
             "launcher.gpu_type=h100", "+launcher.sbatch.nodelist=127.0.1.2")  # fmt: skip
    folders = [step_folder(store, f"numbers[scale={scale}]") for scale in (1, 2)]
    wait_until(lambda: all((folder / "claim.json").exists() for folder in folders))
    seen = []
    for folder in folders:
        pid = json.loads((folder / "claim.json").read_text())["pid"]
        variables = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        seen.append(variables["CUDA_VISIBLE_DEVICES"])
    assert sorted(seen) == ["0,1", "2,3"]
    cluster.idle()
    assert len(digests(store)) == 4


@pytest.mark.slow
def test_a_job_whose_log_cannot_be_made_waits_for_it(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    """SLURM ends a job with 0:53, and not a word, where it cannot make the file that the job would print to."""
    told = on_slurm("experiment=chain", "numbers.pause_s=0.5")
    job = jobs_in(told.stdout)["total"]
    (batch,) = (path.parent for path in store.glob("slurm/*/001/batch.json"))
    (batch / f"{job}_0_log.out").mkdir()
    wait_until(lambda: cluster.states().get(job) not in ("PENDING", None))
    time.sleep(2)
    (batch / f"{job}_0_log.out").rmdir()
    cluster.idle()
    assert digests(store) == undisturbed("experiment=chain")
