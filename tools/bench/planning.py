"""Planning a sweep of 1,000 points, against `hydra -m` over as many and snakemake's dry run of as large a graph.

    python -m tools.bench.planning          (snakemake from PATH, or the program that SNAKEMAKE names)

All sides are processes, interleaved in this one run, in wall seconds. `hydra -m` composes each point and calls an empty
function; it is measured over 40 points and over one, and scaled. snakemake is given rules of the same graph: steps that
do not depend on the point once, the others once a point.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench._figures import figure, named

POINTS, COMPOSED, ROUNDS = 1000, 40, 3
ROOT = Path(__file__).resolve().parents[2]
APP = """\
import hydra
hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")(lambda cfg: None)()
"""
RULES = """\
P = [f"{{1e-4 + i * 1e-6:.6f}}" for i in range({points})]
rule all:
    input: expand("report/{{lr}}", lr=P)
rule tokenizer:
    output: "tokenizer"
    shell: "touch {{output}}"
rule statistics:
    output: "statistics"
    shell: "touch {{output}}"
rule eval_tokenizer:
    input: "tokenizer", "statistics"
    output: "eval_tokenizer"
    shell: "touch {{output}}"
rule cache:
    input: "tokenizer"
    output: "tokens"
    shell: "touch {{output}}"
rule untrained:
    input: "tokens", "tokenizer"
    output: "untrained"
    shell: "touch {{output}}"
rule train:
    input: "tokens"
    output: "train/{{lr}}"
    shell: "touch {{output}}"
rule sample:
    input: "train/{{lr}}", "tokenizer"
    output: "sample/{{lr}}"
    shell: "touch {{output}}"
rule evaluate:
    input: "sample/{{lr}}", "untrained", "statistics", "eval_tokenizer"
    output: "evaluate/{{lr}}"
    shell: "touch {{output}}"
rule report:
    input: "evaluate/{{lr}}", "eval_tokenizer", "sample/{{lr}}", "train/{{lr}}", "tokenizer"
    output: "report/{{lr}}"
    shell: "touch {{output}}"
"""


def seconds(command: list[str], folder: Path | str = ROOT) -> float:
    """Wall time of a command that must succeed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, env=environment)
    return time.perf_counter() - began


def rates(count: int) -> str:
    """So many learning rates, as a sweep takes them."""
    return "train.lr=" + ",".join(f"{1e-4 + i * 1e-6:.6f}" for i in range(count))


def plans(folder: Path) -> None:
    """Prints the figures of planning."""
    (folder / "app.py").write_text(APP.format(conf=str(ROOT / "conf")))
    (folder / "Snakefile").write_text(RULES.format(points=POINTS))
    maskgit = [sys.executable, "-m", "experiments.cli", "plan", "experiment=quickstart", f"paths.store={folder}/store"]
    hydra = [sys.executable, "app.py", "-m", "experiment=quickstart"]
    snakemake = os.environ.get("SNAKEMAKE") or shutil.which("snakemake")
    if not snakemake:
        print("snakemake's row is left out: it is neither on PATH nor named by SNAKEMAKE", file=sys.stderr)
    spent: dict[str, list[float]] = {"ours": [], "hydra": [], "snakemake": []}
    for _ in range(ROUNDS):
        spent["ours"].append(seconds([*maskgit, rates(POINTS)]))
        several, one = (seconds([*hydra, rates(count)], folder) for count in (COMPOSED + 1, 1))
        spent["hydra"].append(one + (several - one) / COMPOSED * (POINTS - 1))
        if snakemake:
            spent["snakemake"].append(seconds([snakemake, "--dry-run", "--cores", "2", "--quiet", "all"], folder))
    note = f"{POINTS:,} points, 4 steps each and 5 shared; a process"
    scaled = f"{note}; {named('hydra-core')} only composes, scaled from {COMPOSED} points"
    figure("plan_1000_points/hydra -m", spent["ours"], spent["hydra"], "s", scaled)
    figure("plan_1000_points/snakemake", spent["ours"], spent["snakemake"] or None, "s", f"{note}; theirs a dry run")


def starts() -> None:
    """Prints how long light commands take, against a process that imports torch."""
    commands = {"help": ["--help"], "plan": ["plan", "experiment=quickstart"]}
    torch: list[float] = []
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        torch.append(seconds([sys.executable, "-c", "import torch"]))
        for name, given in commands.items():
            spent[name].append(seconds([sys.executable, "-m", "experiments.cli", *given]))
    for name in commands:
        figure(f"start_{name}", spent[name], torch, "s", "a process, against one that imports torch")


def main() -> None:
    """Prints one JSON object a figure."""
    with tempfile.TemporaryDirectory() as folder:
        plans(Path(folder))
    starts()


if __name__ == "__main__":
    main()
