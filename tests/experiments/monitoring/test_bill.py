"""`maskgit plan launcher=slurm`: the arrays, what they wait for, and GPU-hours from earlier runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

SWEEP = ("experiment=chain", "numbers.scale=1.0,2.0,3.0", "resources.numbers.gpus_per_task=2", "launcher=dev_cluster")


def test_the_bill_of_a_sweep(lab: Any, store: Path) -> None:
    first = lab("plan", *SWEEP)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^  0 +numbers +3 +1 cores, 2 GPUs +unknown +unknown$", first.stdout, re.MULTILINE), first.stdout
    assert re.search(r"^  1 +total +3 +0 +1 cores +unknown +unknown$", first.stdout, re.MULTILINE)
    assert "about 0.00 GPU-hours, by earlier runs of the same stages, without numbers (never run here)" in first.stdout
    done = lab("run", "experiment=chain", "launcher=inline", "resources.numbers.gpus_per_task=2")
    assert done.returncode == 0, done.stderr
    path = next(store.glob("numbers/*/manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 7200.0}))
    second = lab("plan", *SWEEP).stdout  # numbers[scale=1.0] is done: two remain
    assert re.search(r"^  0 +numbers +2 +1 cores, 2 GPUs +2h00m +8.00$", second, re.MULTILINE), second
    assert "about 8.00 GPU-hours" in second


def test_memory_and_time_that_would_do(lab: Any, store: Path, tmp_path: Path) -> None:
    """From the files of finished steps, and from SLURM's accounting where that saw more: workers of a rank, say."""
    assert lab("run", "experiment=chain", "launcher=inline").returncode == 0
    asked = (*SWEEP, "resources.numbers.mem_gb=64", "resources.numbers.timeout_min=600")
    told = lab("plan", *asked).stdout
    assert re.search(r"numbers: by 1 earlier step of stage numbers, mem_gb: \d+ \(asked: 64, used", told), told
    assert "timeout_min: 5 (asked: 600" in told
    folder = next(store.glob("numbers/*/manifest.json")).parent
    (folder / "submitted.json").write_text(json.dumps({"links": ["7"], "pipeline": "uid", "cluster": ""}))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "squeue").write_text("#!/bin/sh\n")
    lines = ["7|COMPLETED|0:0|n1|60|600|00:10|1||64G|1", "7.0|COMPLETED|0:0|n1|60||00:10|1|8000000K||1"]
    (tools / "sacct").write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    for tool in tools.iterdir():
        tool.chmod(0o755)
    told = lab("plan", *asked, env={"PATH": f"{tools}:{os.environ['PATH']}"}).stdout
    assert "mem_gb: 13 (asked: 64, used: 8.2)" in told, told


def test_the_scripts_are_shown(lab: Any) -> None:
    shown = lab("plan", *SWEEP, "--sbatch")
    assert shown.stdout.count("#!/bin/bash") == 2 and "#SBATCH --array=0-2" in shown.stdout
    assert "#SBATCH --gpus-per-node=2" in shown.stdout
    refused = lab("plan", "experiment=chain", "--sbatch")
    assert refused.returncode == 2 and "add launcher=slurm" in refused.stderr


def test_the_dag_as_a_graph(lab: Any) -> None:
    """Boxes and arrows are those of `plan --json`; names with quotes and brackets are escaped."""
    asked = ("experiment=chain", "numbers.scale=1.0,2.0")
    steps = json.loads(lab("plan", *asked, "--json").stdout)["steps"]
    lines = lab("plan", *asked, "--dot").stdout.splitlines()
    assert lines[0] == "digraph plan {" and lines[-1] == "}"
    boxes = {
        found[1]: json.loads(found[2]) for line in lines if (found := re.match(r'  "(\w+)" \[label=(".*"), f', line))
    }
    assert boxes == {step["fingerprint"][:12]: f"{step['name']}\nto run" for step in steps}
    arrows = [found.groups() for line in lines if (found := re.match(r'  "(\w+)" -> "(\w+)";', line))]
    assert len(arrows) == 2 and all(a in boxes and b in boxes for a, b in arrows)
    lines = lab("plan", *asked, "--mermaid").stdout.splitlines()
    boxes = {found[1]: found[2] for line in lines if (found := re.match(r'  s(\w+)\["(.*)"\]:::run$', line))}
    assert lines[0] == "flowchart LR"
    assert boxes == {step["fingerprint"][:12]: f"{step['name']}<br/>to run" for step in steps}
    shown = [found.groups() for line in lines if (found := re.match(r"  s(\w+) --> s(\w+)$", line))]
    assert shown == arrows
