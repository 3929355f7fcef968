"""Drills on a SLURM set up as real sites do: private jobs, no default partition, no accounting, PreemptMode=CANCEL."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import LAB, ROOT, Cluster, attempts_of, digests, new_cluster, step_folder, wait_until

pytest_plugins = ["slurm_fixtures"]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SLOW = ("numbers.count=24", "numbers.pause_s=0.5")
NOBODY = 65534
PARTITIONS = (
    "PartitionName=main Nodes=ALL MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF",
    "PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=10",
    "PartitionName=low0 Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=0",
)
OVERRIDES = ("ClusterName=strict", "PrivateData=jobs", "JobRequeue=0", "MaxArraySize=100", "PreemptMode=CANCEL")


@pytest.fixture(scope="module")
def strict() -> Iterator[Cluster]:
    """A cluster of its own with the settings of strict sites."""
    made = new_cluster(
        f"/tmp/mgx{os.getpid()}", 10025 + os.getpid() % 400 * 50,
        ACCT="0", GPU_TYPE="2080ti", OVERRIDES=";".join((*OVERRIDES, *PARTITIONS)),
    )  # fmt: skip
    yield made
    made.script("stop.sh")


@pytest.fixture
def site(strict: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(strict.folder / "slurm.conf"))
    monkeypatch.setenv("SQUEUE_PARTITION", "low0")  # somebody's profile; it must not hide anything
    yield strict
    monkeypatch.delenv("SQUEUE_PARTITION", raising=False)
    if left := strict.live():
        subprocess.run(["scancel", *sorted(left)])
        strict.idle()


def jobs_in(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+) +submitted +(\d+(?:_\d+)?)", text, re.MULTILINE))


def running(store: Path, name: str = "numbers", parts: int = 2) -> Path:
    folder = step_folder(store, name)
    wait_until(lambda: len(list((folder / "parts").glob("*.json"))) >= parts)
    return folder


def states(maskgit: Run, store: Path) -> dict[str, str]:
    done = maskgit("status", "--json", "--store", str(store))
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["state"] for row in json.loads(done.stdout)[0]["steps"]}


def idle(cluster: Cluster, timeout_s: float = 240) -> None:
    os.environ.pop("SQUEUE_PARTITION", None)
    cluster.idle(timeout_s)


def tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def as_nobody(store: Path, tmp_path: Path) -> Run:
    """`maskgit ...` as another user of the same group, who sees no job of root's in the queue."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root (with setpriv) can be two users")

    def call(*arguments: str) -> Done:
        rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights,
             sys.executable, "-m", "experiments.cli", *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=300,
            env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
                 "USER": "nobody", "LOGNAME": "nobody", "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip

    return call


def test_a_hidden_job_is_not_superseded(site: Cluster, store: Path, on_slurm: Run, as_nobody: Run, undisturbed) -> None:
    store.mkdir()
    os.chown(store, -1, NOBODY)
    store.chmod(0o2775)
    on_slurm("experiment=chain", *SLOW)
    folder = running(store)
    claim = json.loads((folder / "claim.json").read_text())
    assert claim["cluster"] == "strict"
    assert "numbers" not in tool("squeue", "-h", "-o", "%j", "-u", "nobody")
    shown = as_nobody("status", "chain")
    assert re.search(r"numbers +running", shown.stdout), shown
    lab = ("tracking.ship=false", "--config-dir", str(LAB))
    also = as_nobody("run", "launcher=dev_cluster", "experiment=chain", *SLOW, *lab)
    assert also.returncode == 0, also
    idle(site)
    assert digests(store) == undisturbed("experiment=chain", SLOW[0])
    assert set(attempts_of(store).values()) == {1}, "nobody took it over"


def test_another_clusters_job_is_not_superseded(
    site: Cluster, store: Path, on_slurm: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    """Two clusters with one store; job numbers of one mean nothing in the other."""
    monkeypatch.setenv("SLURM_CONF", str(site.folder / "slurm.conf"))
    on_slurm("experiment=chain", *SLOW)
    folder = running(store)
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    on_slurm("experiment=chain", *SLOW)
    time.sleep(2)
    assert len(list((folder / "attempts").iterdir())) == 1, "the second cluster's job waits"
    idle(cluster)
    monkeypatch.setenv("SLURM_CONF", str(site.folder / "slurm.conf"))
    idle(site)
    assert digests(store) == undisturbed("experiment=chain", SLOW[0])
    assert set(attempts_of(store).values()) == {1}


@pytest.mark.parametrize("requeue", ["scontrol", "chain"])
@pytest.mark.parametrize("partition", ["low", "low0"])
def test_preemption_that_cancels_is_continued(
    site: Cluster, store: Path, on_slurm: Run, undisturbed, partition: str, requeue: str
) -> None:
    place = (
        f"launcher.partition={partition}",
        "+launcher.sbatch.nodelist=127.0.1.3",
        "resources.numbers.cpus_per_task=4",
    )
    on_slurm("experiment=chain", *SLOW, *place, f"launcher.requeue={requeue}", "launcher.max_attempts=3")
    folder = running(store)
    high = tool("sbatch", "--parsable", "-o", "/dev/null", "-p", "high", "-w", "127.0.1.3", "-c", "4", "--wrap", "true")
    os.environ.pop("SQUEUE_PARTITION", None)
    wait_until(lambda: site.states().get(high.strip()) == "COMPLETED", 120)
    idle(site)
    assert digests(store) == undisturbed("experiment=chain", SLOW[0])
    assert len(list((folder / "attempts").iterdir())) == 2


def test_a_container_without_slurm_requeues_and_releases(
    site: Cluster, store: Path, on_slurm: Run, maskgit: Run, undisturbed
) -> None:
    """No SLURM tool is found by the step's processes; the job script on the host has them."""
    bare = f"launcher.python='env PATH=/nowhere {sys.executable}'"
    final = "resources.numbers.retry.oom=fail"
    jobs = jobs_in(on_slurm("experiment=chain", *SLOW, bare, final).stdout)
    folder = running(store)
    tool("scancel", "--signal=USR2", jobs["numbers"])
    wait_until(lambda: len(list((folder / "attempts").iterdir())) == 2, 120)
    wait_until(lambda: (folder / "claim.json").exists())
    pid = int(json.loads((folder / "claim.json").read_text())["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not (folder / "claim.json").exists(), 20)
    idle(site)
    assert states(maskgit, store) == {"numbers": "killed", "total": "blocked"}
    on_slurm("experiment=chain", *SLOW, bare)
    idle(site)
    assert digests(store) == undisturbed("experiment=chain", SLOW[0])


def test_a_job_that_dies_before_its_step_is_named_with_its_node(
    site: Cluster, store: Path, on_slurm: Run, maskgit: Run
) -> None:
    on_slurm("experiment=chain", "launcher.setup=['exit 9']")
    idle(site)
    found = maskgit("failures", "chain", "--store", str(store))
    assert re.search(r"1 x job script: the job script ended with exit code 9 before the step began", found.stdout), (
        found
    )
    assert re.fullmatch(r"127\.0\.1\.\d\n", maskgit("failures", "--nodes", "--store", str(store)).stdout)


def test_a_step_has_its_own_partition_and_gpu_type(site: Cluster, store: Path, on_slurm: Run, lab: Run) -> None:
    jobs = jobs_in(
        on_slurm("experiment=chain", *SLOW, "resources.numbers.partition=low", "resources.numbers.gpus_per_task=2",
                 "resources.numbers.gpu_type=2080ti", "launcher.cpu_partition=high").stdout
    )  # fmt: skip
    shown = {name: tool("scontrol", "show", "job", job) for name, job in jobs.items()}
    assert "Partition=low\n" in shown["numbers"].replace(" ", "\n") and "2080ti:2" in shown["numbers"]
    assert "Partition=high\n" in shown["total"].replace(" ", "\n")
    refused = lab("run", "launcher=dev_cluster", "experiment=chain", "resources.numbers.gpus_per_task=1",
                  "launcher.gpu_type=3090", "numbers.count=3")  # fmt: skip
    assert refused.returncode == 2 and "no node in partition main has 3090 GPUs; one of [2080ti]" in refused.stderr


def test_one_limit_for_all_arrays_of_a_sweep(site: Cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    sweep = ("experiment=chain", "numbers.count=4", "numbers.scale=1.0,2.0,3.0,4.0,5.0,6.0")
    on_slurm(*sweep, "numbers.pause_s=0.3", "launcher.max_parallel=2")
    os.environ.pop("SQUEUE_PARTITION", None)
    most = 0
    while site.live():
        most = max(most, sum(state in ("RUNNING", "COMPLETING") for state in site.states().values()))
        time.sleep(0.2)
    assert 1 <= most <= 2, most
    assert digests(store) == undisturbed(*sweep)


def test_no_default_partition_is_one_line(site: Cluster, store: Path, lab: Run) -> None:
    refused = lab("run", "launcher=slurm", "experiment=chain")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "partition" in refused.stderr, refused


def test_submissions_of_others_are_reported_not_touched(site: Cluster, store: Path, on_slurm: Run) -> None:
    folder = store / "slurm" / "20260101-000000-0badcafe"
    folder.mkdir(parents=True)
    (folder / "submission.json").write_text(json.dumps({"state": "submitted", "order": ["1"], "names": ["x"]}))
    before = (folder / "submission.json").read_text()
    os.chown(folder / "submission.json", NOBODY, NOBODY)
    done = on_slurm("experiment=chain")
    assert "a submission of nobody (20260101-000000-0badcafe) was interrupted" in done.stdout
    assert (folder / "submission.json").read_text() == before
    idle(site)
    assert len(digests(store)) == 2
