"""The files that describe the environment agree with each other."""

from __future__ import annotations

import re
import tomllib

import yaml
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FIXED = {
    "torch",
    "torchvision",
    "hydra-core",
    "submitit",
    "mlflow",
    "accelerate",
    "einops",
    "webdataset",
    "torchmetrics",
    "huggingface_hub",
}


def test_environment_yml_lists_what_pyproject_lists() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert sorted(p for p in pip if not p.startswith("--")) == sorted(PROJECT["dependencies"])
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_every_fixed_package_is_a_dependency() -> None:
    names = {re.split(r"[<>=!\[]", d)[0] for d in PROJECT["dependencies"]}
    assert names >= FIXED


def test_constraints_pin_every_dependency_and_name_no_registry() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pinned = {line.split("==")[0].lower().replace("-", "_") for line in text.splitlines() if "==" in line}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert not {re.split(r"[<>=!\[]", d)[0].lower().replace("-", "_") for d in wanted} - pinned
    assert "://" not in text and "--index" not in text
