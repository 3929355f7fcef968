"""submitit's own executors: a step runs on its local and debug ones; why its SLURM one does not submit ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit
from slurm_cluster import ROOT, Cluster, wait_until

from experiments.running.job import main

pytest_plugins = ["slurm_fixtures"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_a_step_is_a_call_that_submitit_runs(
    lab: Run, store: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job executes is one function with plain arguments; it goes on from what an earlier attempt published."""
    assert lab("run", "launcher=inline", "experiment=chain", "numbers.fail=crash").returncode == 1
    (path,) = store.glob("numbers/*/launch.json")
    launch = json.loads(path.read_text())
    launch["execution"]["fail"] = None
    path.write_text(json.dumps(launch))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster=cluster)
    executor.update_parameters(timeout_min=5)
    assert executor.submit(main, str(path.parent)).result() == 0
    assert json.loads((path.parent / "manifest.json").read_text())["attempt"] == 2


KILLED = """\
import os, submitit

class Killed(submitit.SlurmExecutor):
    def _submit_command(self, command):  # the process ends when sbatch has answered, before the pickle has its name
        job = super()._submit_command(command)
        open("{folder}/id", "w").write(job.job_id)
        os.kill(os.getpid(), 9)

executor = Killed(folder="{folder}")
executor.update_parameters(time=5)
executor.submit(print, "work")
"""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_killed_submission_of_submitit_leaves_a_job_that_cannot_work(cluster: Cluster, tmp_path: Path) -> None:
    """Why job scripts name a JSON file that was written before sbatch: here the work is lost, the job runs and fails.

    Ours stays held, is taken out by the next command and submitted once (`test_slurm_runs.py`, killed submissions).
    """
    code = textwrap.dedent(KILLED).format(folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.returncode == -9
    job = (tmp_path / "id").read_text()
    wait_until(lambda: cluster.states().get(job) not in ("PENDING", "RUNNING", "COMPLETING"), 180)
    assert cluster.states()[job] == "FAILED"
    assert not list(tmp_path.glob("*_result.pkl")) or "Error" in next(tmp_path.glob(f"{job}_*log.err")).read_text()
    with pytest.raises(Exception, match=r"(?i)error|fail|complete"):
        submitit.SlurmJob(tmp_path, job).result()
