"""Trained components by name, and `docs/python.md`, whose code is executed on a small store."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from sample_inputs import make_inputs

import maskgit_core as mg
from maskgit_core.errors import ArtifactError, ConfigError, WeightsError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an untrained tokenizer and model under the quickstart's names."""
    root = tmp_path_factory.mktemp("store")
    model, tokenizer = make_inputs(tmp_path_factory, num_classes=4)
    for step, made in (("train_tokenizer", tokenizer), ("train", model)):
        shutil.copytree(made.files, root / "experiments" / "quickstart" / step / "files")
    return root


def test_the_page_runs(store, monkeypatch):
    monkeypatch.setenv("MASKGIT_STORE", str(store))
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["images"].shape[0] == 16 and names["images"].dtype == torch.uint8
    known = names["known"]
    assert torch.equal(names["filled"][known >= 0], known[known >= 0])


def test_the_twelve_lines_run(tmp_path, tmp_path_factory, monkeypatch):
    model, tokenizer = make_inputs(tmp_path_factory, num_classes=10, num_tokens=49, grid=[7, 7])
    for step, made in (("train_tokenizer", tokenizer), ("train", model)):
        shutil.copytree(made.files, tmp_path / "experiments" / "quickstart" / step / "files")
    monkeypatch.setenv("MASKGIT_STORE", str(tmp_path))
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebook.md").read_text(), re.DOTALL)
    *most, last = lines.splitlines()
    names: dict = {}
    exec(compile("\n".join(most), "docs/notebook.md", "exec"), names)
    picture = eval(last, names)  # what a notebook would display
    known = names["masked"] >= 0
    assert len(most) == 11 and picture.width > picture.height
    assert torch.equal(names["filled"][known], names["tokens"][known]) and bool((names["filled"] >= 0).all())


def test_a_sample_depends_on_its_seed_and_number_alone(store, monkeypatch):
    monkeypatch.setenv("MASKGIT_STORE", str(store))
    tokenizer = mg.load_tokenizer("store:quickstart/train_tokenizer")
    model = mg.load_model(store / "experiments" / "quickstart" / "train" / "files")
    whole = mg.sample(model, tokenizer, labels=[0, 1, 0, 1, 0])
    assert torch.equal(mg.sample(model, tokenizer, labels=[0, 1, 0, 1, 0], batch_size=2), whole)
    assert mg.show(whole, columns=5).size[0] > mg.show(whole, columns=1).size[0]


def test_what_is_not_there_is_named(store, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKGIT_STORE", str(store))
    with pytest.raises(ArtifactError, match=r"store:quickstart/trian: there is no finished step.*quickstart/train"):
        mg.load_model("store:quickstart/trian")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: is missing"):
        mg.load_tokenizer(tmp_path)
    with pytest.raises(WeightsError, match="no such weights"):
        mg.load_tokenizer("nobody/nothing")
    with pytest.raises(WeightsError, match="is no tokenizer"):
        mg.load_tokenizer("halton/imagenet_256_small")
    with pytest.raises(ConfigError, match="neither labels nor num_samples"):
        mg.sample(mg.load_model("store:quickstart/train"), mg.load_tokenizer("store:quickstart/train_tokenizer"))


def test_importing_the_package_brings_no_torch():
    code = "import sys, maskgit_core as mg; assert 'torch' not in sys.modules; mg.show; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_python_of_the_readme_runs(store, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKGIT_STORE", str(store))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "mg.show" in block]
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape[0] == 16 and (tmp_path / "samples.png").stat().st_size > 0
