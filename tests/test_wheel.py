"""The wheel in an environment of its own, far from any checkout: the quickstart runs and all its files are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_quickstart_runs_from_a_wheel_outside_a_checkout(tmp_path: Path) -> None:
    """Third-party packages are those of this environment; the project itself comes from the wheel alone."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # a checkout there would count as installed
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # of an earlier build; its files would go into the wheel
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=300)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)], check=True, timeout=300,
                   env=env)  # fmt: skip
    (place,) = (home / "lib").glob("python*/site-packages")
    (place / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    away = tmp_path / "away"
    away.mkdir()
    found = subprocess.run([python, "-c", "import experiments.cli, maskgit_core; print(experiments.cli.__file__)"],
                           cwd=away, env=env, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert str(home) in found.stdout, found.stdout + found.stderr
    done = subprocess.run([home / "bin" / "maskgit", "run", "quickstart", "toy=true", "tracking.ship=false"],
                          cwd=away, env=env, capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(away.glob("runs*/experiments/quickstart/report/files/report.html")), done.stdout
