"""Steps cut into independent array tasks (`resources.<step>.num_tasks`) on a real SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import attempts_of, digests, step_folder, wait_until

from maskgit_core.files import read_json

pytest_plugins = ["slurm_fixtures"]
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slurm

CUT = ("experiment=chain", "numbers.count=12", "resources.numbers.num_tasks=3")
TINY = (
    "experiment=quickstart",
    "train_tokenizer.num_train_steps=8",
    "train_tokenizer.batch_size=8",
    "train_tokenizer.num_held_out=10",
    "reference_statistics.num_images=40",
    "eval_tokenizer.num_images=20",
    "cache_tokens.shard_size=2500",
    "train.num_train_steps=6",
    "train.batch_size=8",
    "sample.num_samples=40",
    "sample.piece_size=10",
    "sampler.num_steps=4",
    "evaluate.num_images=40",
    "evaluate.classifier_steps=2",
)


def made_by(folder: Path) -> dict[str, list[int]]:
    """Log of a process -> the numbers it made."""
    made = re.compile(r"^made (\d+)$", re.MULTILINE)
    return {p.stem.partition(".")[2]: [int(n) for n in made.findall(p.read_text())] for p in logs(folder)}


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "logs").glob("*.txt"))


def test_tasks_make_the_pieces_and_the_step_finishes(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    on_slurm(*CUT)
    note = read_json(step_folder(store, "numbers") / "submitted.json")
    assert len({job.partition("_")[0] for job in note["tasks"]}) == 1, "the tasks are one array"
    cluster.idle()
    assert digests(store) == undisturbed(*CUT[:2])
    folder = step_folder(store, "numbers")
    assert made_by(folder) == {"": [], "task0": [0, 3, 6, 9], "task1": [1, 4, 7, 10], "task2": [2, 5, 8, 11]}
    assert set(attempts_of(store).values()) == {1} and not (folder / "tasks").exists()


def test_a_killed_task_costs_only_its_pieces(cluster, store: Path, on_slurm: Run, undisturbed, maskgit: Run) -> None:
    on_slurm(*CUT, "numbers.pause_s=0.5", "resources.numbers.retry={oom: fail}")  # else the task itself comes back
    folder = step_folder(store, "numbers")
    wait_until(lambda: len(list((folder / "parts").glob("*.json"))) >= 3)
    rows = maskgit("status", "chain").stdout
    assert re.search(r"numbers +running .*tasks run", rows), rows
    victim = next(
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if (line := command(p)) and "experiments.running.array_tasks:main" in line and f'"{folder}", 1, 3' in line
    )
    os.kill(victim, signal.SIGKILL)
    cluster.idle()
    assert digests(store) == undisturbed(*CUT[:2])
    by = made_by(folder)
    assert set(by[""]) <= {1, 4, 7, 10} and by[""], "the step's own job made what the killed task left"


def command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_cancel_ends_the_tasks_too(cluster, store: Path, on_slurm: Run, maskgit: Run) -> None:
    on_slurm(*CUT, "numbers.pause_s=2")
    wait_until(lambda: list((step_folder(store, "numbers") / "parts").glob("*.json")))
    assert maskgit("cancel", "chain").returncode == 0
    cluster.idle()
    assert digests(store) == {}


def test_a_step_whose_processes_talk_is_not_cut(store: Path, lab: Run) -> None:
    done = lab("run", "experiment=chain", "resources.total.num_tasks=2")
    assert done.returncode == 2 and not store.exists()
    assert done.stderr.startswith("error: resources.total.num_tasks: found 2; total cannot be cut"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_real_stages_cut_into_tasks_give_the_same_results(cluster, store: Path, on_slurm: Run, undisturbed) -> None:
    cut = [
        f"resources.{stage}.num_tasks={n}"
        for stage, n in {
            "cache_tokens": 2,
            "sample": 3,
            "evaluate": 2,
            "eval_tokenizer": 2,
            "reference_statistics": 2,
        }.items()
    ]
    on_slurm(*TINY, *cut)
    cluster.idle(900)
    expected = undisturbed(*TINY)
    assert len(expected) == 9
    found = digests(store)
    report = read_json(step_folder(store, "report") / "manifest.json")["fingerprint"]
    assert {found.pop(report), expected.pop(report)} and found == expected, "all but the report, which shows speeds"
