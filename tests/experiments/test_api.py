"""Experiments from Python, on the toy laboratory."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LAB

from experiments import api
from maskgit_core.errors import ConfigError, LaunchError

REQUEST = ("experiment=rates", "launcher=inline", "tracking.ship=false")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGIT_STORE", str(tmp_path / "store"))
    monkeypatch.syspath_prepend(str(LAB.parent.parent))


def test_a_plan_is_a_table_and_writes_nothing(tmp_path: Path) -> None:
    plan = api.plan(*REQUEST, config_dirs=[LAB])
    assert set(plan.to_dataframe()["action"]) == {"run"} and "to run" in str(plan)
    assert not list((tmp_path / "store").glob("*/*/request.json"))


def test_what_ran_is_found_again(tmp_path: Path) -> None:
    store = api.run(*REQUEST, config_dirs=[LAB])
    assert store.path == tmp_path / "store"
    results = store.results()
    assert len(results) == 6 and {"experiment", "step", "train.lr", "fd_toy"} <= set(results.columns)
    assert len(store.results("train.lr<0.01")) < 6
    best = results.sort_values("fd_toy").iloc[0]
    step = store.step(f"rates/{best['step']}[lr={best['train.lr']:g}]")
    assert step.scores["fd_toy"] == best["fd_toy"] and step.files.is_dir()
    curve = store.step(f"rates/train[lr={best['train.lr']:g}]").metrics()
    assert len(curve) > 1 and curve.index.is_monotonic_increasing
    assert set(api.plan(*REQUEST, config_dirs=[LAB]).to_dataframe()["action"]) == {"done"}


def test_errors_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trian: unknown key"):
        api.plan(*REQUEST, "trian.lr=1", config_dirs=[LAB])
    with pytest.raises(LaunchError, match="a step failed"):
        api.run("experiment=chain", "numbers.fail=crash", "launcher=inline", "tracking.ship=false", config_dirs=[LAB])
    with pytest.raises(ConfigError):
        api.open_store(tmp_path / "nothing").step("quickstart/train")
