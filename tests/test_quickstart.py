"""The quickstart's pipeline at toy size: the same stages, killed in each of them, against an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from maskgit_core.files import read_json

TINY = [
    "experiment=quickstart",
    "launcher=inline",
    "tracking.ship=false",
    "train_tokenizer.num_train_steps=24",
    "train_tokenizer.checkpoint_every=4",
    "train_tokenizer.batch_size=16",
    "train_tokenizer.num_held_out=20",
    "reference_statistics.num_images=60",
    "eval_tokenizer.num_images=40",
    "cache_tokens.shard_size=2500",
    "train.num_train_steps=16",
    "train.batch_size=16",
    "train.warmup_steps=2",
    "train.checkpoint_every=3",
    "train.log_every=2",
    "train.samples_every=8",
    "sample.num_samples=40",
    "sample.piece_size=10",
    "sampler.num_steps=4",
    "evaluate.num_images=40",
    "evaluate.classifier_steps=6",
]
STAGES = [  # in the order in which one process runs them
    "train_tokenizer",
    "reference_statistics",
    "cache_tokens",
    "eval_tokenizer",
    "train",
    "sample",
    "evaluate",
    "report",
]


def command(store: Path) -> subprocess.Popen[str]:
    """The pipeline in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "run", *TINY, f"paths.store={store}"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def finish(store: Path) -> str:
    process = command(store)
    text, _ = process.communicate(timeout=900)
    assert process.returncode == 0, text
    return text


def results(store: Path) -> dict[str, Any]:
    """What must be equal: sampled tokens, trained weights, scores, and the digest of every artifact."""
    links = store / "experiments" / "quickstart"
    found: dict[str, Any] = {}
    for link in sorted(links.iterdir()):
        manifest = read_json(link / "manifest.json")
        assert manifest is not None, f"{link.name} is not finished"
        if link.name != "report":  # the page shows speeds, which differ from run to run
            found[link.name] = manifest["digest"]
    with np.load(links / "sample" / "files" / "tokens.npz") as tokens:
        found["tokens"] = {k: tokens[k].tolist() for k in tokens.files}
    found["scores"] = json.loads((links / "evaluate" / "files" / "scores.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the pipeline ran once from start to end."""
    store = tmp_path_factory.mktemp("undisturbed")
    finish(store)
    return store


def killed_in(store: Path, stage: str, generator: random.Random) -> bool:
    """Runs the pipeline and kills it with SIGKILL a random while after `stage` began; False where it was too late."""
    if list((store / stage).glob("*/manifest.json")):
        return False
    process = command(store)
    deadline = time.monotonic() + 600
    while not list((store / stage).glob("*/claim.json")):
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]  # what was killed before must not stand in the way
            return False
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    time.sleep(generator.uniform(0.0, 0.8))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def drilled(store: Path, stages: list[str], seed: int) -> dict[str, Any]:
    """What a store holds in the end where every one of these stages was killed once."""
    generator = random.Random(seed)
    kills = sum(killed_in(store, stage, generator) for stage in stages)
    assert kills >= len(stages) - 1, "hardly anything was killed"
    finish(store)
    return results(store)


def test_killed_in_some_stages_equals_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    stages = ["train_tokenizer", "cache_tokens", "train", "sample"]
    assert drilled(tmp_path / "store", stages, 0) == results(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_in_every_stage_equals_undisturbed(tmp_path: Path, undisturbed: Path, seed: int) -> None:
    assert drilled(tmp_path / "store", STAGES, seed) == results(undisturbed)


def test_training_shows_grids_of_samples(undisturbed: Path) -> None:
    folder = undisturbed / "experiments" / "quickstart" / "train"
    assert read_json(folder / "manifest.json")["shown"] == [f"samples/step-{step:09d}.png" for step in (8, 16)]  # type: ignore[index]
    assert (folder / "files" / "samples" / "step-000000016.png").read_bytes()[:4] == b"\x89PNG"


def test_run_again_does_nothing(undisturbed: Path) -> None:
    text = finish(undisturbed)
    assert "nothing to do: every step is done and was not run again" in text


def test_a_changed_key_reruns_exactly_what_depends_on_it(undisturbed: Path) -> None:
    arguments = [*TINY, f"paths.store={undisturbed}", "train.num_train_steps=17"]
    done = subprocess.run([sys.executable, "-m", "experiments.cli", "plan", *arguments, "--json"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    steps = {s["name"]: s for s in json.loads(done.stdout)["steps"]}
    assert {n for n, s in steps.items() if s["action"] == "run"} == {"train", "sample", "evaluate", "report"}
    assert "train.num_train_steps: 16 -> 17" in steps["train"]["reason"]


def test_workers_and_batch_sizes_that_do_not_count_rerun_nothing(undisturbed: Path) -> None:
    arguments = [
        *TINY,
        f"paths.store={undisturbed}",
        "train.log_every=7",
        "cache_tokens.num_workers=2",
        "sample.batch_size=8",
    ]
    done = subprocess.run([sys.executable, "-m", "experiments.cli", "plan", *arguments, "--json"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert {s["action"] for s in json.loads(done.stdout)["steps"]} == {"done"}


def test_the_report_is_self_contained_and_escaped(undisturbed: Path) -> None:
    page = (undisturbed / "experiments" / "quickstart" / "report" / "files" / "report.html").read_text()
    assert "<script" not in page.lower()
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="data:image/png;base64,' in page
    assert "floor_to_ceiling" in page


def test_images_on_the_fly_give_the_same_losses(tmp_path: Path, undisturbed: Path) -> None:
    """`data=images` encodes pictures while training: the same tokens, so the same weights as from the cache."""
    import shutil

    store = tmp_path / "store"
    shutil.copytree(undisturbed, store, symlinks=True)
    asked = [word for word in TINY if not word.startswith("cache_tokens.")]  # there is no such step then
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", *asked, f"paths.store={store}", "data=images"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    weights = {(p / "files" / "model.safetensors").read_bytes() for p in (store / "train").iterdir()}
    assert len(list((store / "train").iterdir())) == 2 and len(weights) == 1
