"""Submitting and watching 400 steps (100 items x 4 stages) on a real SLURM.

Ours plans, freezes the code, records and submits item-by-item chains: one array a stage. Theirs is submitit as it is
used for such chains, one job with its own dependency for each step (its arrays cannot carry one for each element), with
submitit's own pause of 0.2 s between calls taken out; it neither plans nor records nor freezes.

    python -m tools.bench.submission      (needs tools/dev_cluster/install.sh)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench._figures import budget, figure

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 100
EXPERIMENT = """\
# @package _global_
plugins: [toylab]
pipeline:
  steps:
    numbers: {stage: numbers}
    total: {stage: total, needs: [numbers]}
    again: {stage: total, needs: [numbers]}
    difference: {stage: difference, needs: {left: again, right: total}}
again: {weight: 2.0}
"""


def main() -> int:
    """Prints the figures; returns 0."""
    cluster = {**os.environ, "SLURM_TEST_ROOT": f"/tmp/mgb{os.getpid()}", "PORT": "18800"}
    cluster["PATH"] += ":/usr/sbin:/sbin"
    scripts = ROOT / "tools" / "dev_cluster"
    subprocess.run([str(scripts / "start.sh")], env=cluster, check=True, stdout=sys.stderr)
    os.environ["SLURM_CONF"] = str(Path(cluster["SLURM_TEST_ROOT"]) / "slurm.conf")
    folder = Path(tempfile.mkdtemp(prefix="bench-submission-"))
    try:
        (folder / "lab" / "experiment").mkdir(parents=True)
        (folder / "lab" / "experiment" / "wide.yaml").write_text(EXPERIMENT)
        ours, theirs, status = [], [], []
        for turn in range(3):
            ours.append(_seconds(lambda turn=turn: _submit_ours(folder, turn)))
            status.append(_seconds(lambda turn=turn: _maskgit(folder, turn, "status")))
            _empty()
            theirs.append(_seconds(lambda: _submit_theirs(folder)))
            _empty()
        note = f"{ITEMS} items x 4 stages, process start included; theirs: submitit, a job for each step"
        figure("submit 400 steps", ours, theirs, "s", note)
        budget("status of 400 steps", _median(status), 2.0, "s", "median")
    finally:
        subprocess.run([str(scripts / "stop.sh")], env=cluster, check=False)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _submit_ours(folder: Path, turn: int) -> None:
    values = ",".join(str(value) for value in range(1, ITEMS + 1))
    options = ["experiment=wide", "launcher=dev_cluster", "launcher.max_parallel=1", f"numbers.scale={values}"]
    dirs = ["--config-dir", str(ROOT / "tests" / "toylab" / "conf"), "--config-dir", str(folder / "lab")]
    _maskgit(folder, turn, "run", *options, *dirs)


def _maskgit(folder: Path, turn: int, *arguments: str) -> None:
    environment = {**os.environ, "MASKGIT_STORE": str(folder / f"store{turn}"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _submit_theirs(folder: Path) -> None:
    code = f"""
import submitit
executor = submitit.AutoExecutor(folder={str(folder / "submitit")!r}, cluster="slurm")
executor._executor._throttling = 0
for item in range({ITEMS}):
    before = None
    for stage in range(4):
        extra = {{"dependency": f"afterok:{{before}}", "hold": True}} if before else {{"hold": True}}
        executor.update_parameters(slurm_partition="main", slurm_additional_parameters=extra)
        before = executor.submit(print, item).job_id
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def _empty() -> None:
    subprocess.run(["scancel", "-u", str(os.getuid())], check=False)
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        time.sleep(0.2)


def _seconds(call: object) -> float:
    began = time.monotonic()
    call()  # type: ignore[operator]
    return time.monotonic() - began


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
