"""Shared fixtures: a clean environment and the toy lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Two workers with a thread a core each would spin against each other; set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A busy machine must not fail a property test: laws are not timings.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LEAKY = ("SLURM_", "MASKGIT_", "MLFLOW_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
LAB = TESTS / "toylab" / "conf"

sys.path[:0] = [str(TESTS), str(TESTS / "support")]


@pytest.fixture(scope="module")
def composed_configs() -> dict[tuple[Any, ...], dict[str, Any]]:
    """What Hydra composed for the tests of one file."""
    return {}


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch, composed_configs: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Composes equal choices once a file; many tests ask for the same experiment with other values."""
    from experiments.config import compose as composing

    compose = composing.compose

    def once(choices: Any, config_dirs: Any = ()) -> dict[str, Any]:
        key = (tuple(choices), tuple(config_dirs))
        if key not in composed_configs:
            composed_configs[key] = compose(choices, config_dirs)
        return composed_configs[key]

    monkeypatch.setattr(composing, "compose", once)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's cluster, store or tracker leaks into a test."""
    for name in list(os.environ):
        if (
            name.startswith(("SLURM_", "MASKGIT_", "MLFLOW_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))
            and name != "SLURM_CONF"
        ):
            monkeypatch.delenv(name)


Done = subprocess.CompletedProcess[str]
Maskgit = Callable[..., Done]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store."""
    return tmp_path / "store"


@pytest.fixture
def maskgit(store: Path, tmp_path: Path) -> Maskgit:
    """Runs `maskgit ARGS` as a real process with its own store; returns the completed process."""

    def call(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "experiments.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=timeout,
            env={**os.environ, "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT), **(env or {})},
        )

    return call


@pytest.fixture
def lab(maskgit: Maskgit) -> Maskgit:
    """`maskgit VERB ... --config-dir <toy lab>`."""

    def call(verb: str, *arguments: str, **kwargs: object) -> Done:
        quiet = ["tracking.ship=false"] if verb == "run" else []  # MLflow has its own tests
        return maskgit(verb, *arguments, *quiet, "--config-dir", str(LAB), **kwargs)

    return call


def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own with `size` bytes ("64m"); skips where mounting is not permitted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
