"""Fixtures of the tests on a real SLURM; test files name this module in `pytest_plugins`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, digests, start_cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, with an empty queue afterwards."""
    made = start_cluster()
    monkeypatch.setenv("SLURM_CONF", str(made.folder / "slurm.conf"))
    yield made
    left = made.live()
    if left:
        subprocess.run(["scancel", *sorted(left)])
        made.idle()


@pytest.fixture
def on_slurm(lab: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`maskgit run experiment=... launcher=dev_cluster` on the toy lab; must succeed unless told otherwise."""

    def run(*overrides: str, code: int = 0, **kwargs: object) -> subprocess.CompletedProcess[str]:
        done = lab("run", "launcher=dev_cluster", *overrides, **kwargs)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def undisturbed(lab: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Fingerprint -> digest of the same experiment run in one process, in a store of its own."""

    def run(*overrides: str) -> dict[str, str]:
        other = tmp_path / "undisturbed"
        done = lab("run", "launcher=inline", *overrides, env={"MASKGIT_STORE": str(other)})
        assert done.returncode == 0, done.stderr
        return digests(other)

    return run
