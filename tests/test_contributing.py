"""`docs/contributing.md` is followed to the letter: its sampler works in the tree and as a plugin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SMALL = (
    "train_tokenizer.num_train_steps=2",
    "train.num_train_steps=2",
    "sample.num_samples=20",
    "launcher=inline",
    "tracking.ship=false",
    "--until",
    "sample",
)


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """Path -> text of every file that the page shows."""
    text = (ROOT / "docs" / "contributing.md").read_text()
    return {m[1]: m[2] for m in re.finditer(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL)}


def follow(blocks: dict[str, str], where: Path, moves: dict[str, str]) -> None:
    """Writes the page's files below `where`."""
    for path, text in blocks.items():
        target = where / moves.get(path, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_a_sampler_added_in_the_tree_is_chosen_by_name_and_held_to_the_laws(blocks, tmp_path):
    for package in ("maskgit_core", "experiments", "launchers", "conf", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "goldens"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    follow({p: t for p, t in blocks.items() if not p.startswith("mylab")}, tmp_path, {})
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MASKGIT_STORE": str(tmp_path / "store")}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    laws = python(
        "-m", "pytest", "-p", "no:cacheprovider", "tests/maskgit_core/test_sampler_laws.py", "-k", "centre_out"
    )
    assert laws.returncode == 0 and " passed" in laws.stdout, laws.stdout[-3000:]
    checked = python("-m", "experiments.cli", "config", "experiment=quickstart", "sampler=centre_out", "--checked")
    assert checked.returncode == 0 and "centre_out" in checked.stdout, checked.stderr


def test_a_sampler_in_a_package_of_ones_own_runs(blocks, tmp_path, maskgit):
    ours = [path for path in blocks if not path.startswith("mylab")]
    follow(blocks, tmp_path, {path: f"mylab/{path.removeprefix('maskgit_core/')}" for path in ours})
    for folder in ("mylab", "mylab/samplers"):
        (tmp_path / folder / "__init__.py").touch()
    done = maskgit("run", "experiment=garments", "--config-dir", "mylab/conf", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "store" / "sample").glob("centre_out-*/manifest.json"))
