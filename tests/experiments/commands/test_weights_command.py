"""`maskgit weights`: what it prints and how it ends."""

import json
import os

import pytest
import torch

from experiments.cli import main
from maskgit_core.weights.registry import by_name


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_list_names_licence_and_place(capsys, tmp_path):
    assert main(["weights", "list", "--json"]) == 0
    facts = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    amused = facts["amused/amused-512"]
    assert amused["path"] is None and "openrail++" in amused["licence"]
    assert amused["target"].startswith(str(tmp_path / "home"))
    assert main(["weights", "list"]) == 0
    assert "openrail++" in capsys.readouterr().out


def test_unknown_names_end_with_two_before_anything_is_downloaded(capsys):
    assert main(["weights", "fetch", "amused/amused-512", "amused/amused-51"]) == 2
    said = capsys.readouterr()
    assert "did you mean amused/amused-512?" in said.err and len(said.err.splitlines()) == 1 and not said.out


def test_import_then_verify_then_damage(capsys, tmp_path):
    name = "halton/imagenet_256_small"
    path = tmp_path / "mine.pth"
    torch.save({"model_state_dict": {"w": torch.ones(3)}}, path)
    assert main(["weights", "import", name, str(path)]) == 0
    assert main(["weights", "verify"]) == 0
    assert f"{name}: sha256 as recorded at first use; holds 1 tensors" in capsys.readouterr().out
    kept = next((tmp_path / "home").rglob("ImageNet_256_small.pth"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    os.utime(kept, ns=(1, 1))
    assert main(["weights", "verify", name]) == 1
    assert "WRONG" in capsys.readouterr().err


def test_verify_loads_the_layout(capsys, tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3)}}, path)
    name = "taming/vqgan_imagenet_f16_16384"
    assert main(["weights", "import", name, str(path)]) == 2
    assert "lacks quantize.embedding.weight" in capsys.readouterr().err
    target = by_name(name).target
    assert not target.exists() and not target.with_name("recorded.json").exists(), "the right file is still welcome"
    target.parent.mkdir(parents=True)
    path.rename(target)
    assert main(["weights", "verify", name]) == 1
    assert "lacks quantize.embedding.weight" in capsys.readouterr().err
