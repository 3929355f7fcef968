"""Weights that are not what they should be, for every family, through the commands: one line each, nothing run."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Maskgit
from PIL import Image

from experiments.cli import main
from maskgit_core.weights.registry import by_name

LAYOUTS = ROOT / "maskgit_core" / "weights" / "layouts"
#: Family -> (layout, registry name, config, the container's key).
FAMILIES = {
    "maskgit_vqgan": ("maskgit_vqgan", "titok/maskgit-vqgan-imagenet-f16-256", "maskgit_vqgan", ""),
    "taming": ("taming_f16_16384", "taming/vqgan_imagenet_f16_16384", "taming_f16_16384", "state_dict"),
    "llamagen": ("llamagen_ds16", "llamagen/vq_ds16_c2i", "llamagen_f16", "model"),
    "amused": ("amused", "amused/amused-512", "amused_512", ""),
}
EXPERIMENT = """\
# @package _global_
defaults: [/dataset: image_folder, /tokenizer: maskgit_vqgan, _self_]
description: one published tokenizer on a few pictures
dataset: {image_size: 32}
pipeline: {steps: {eval_tokenizer: {stage: eval_tokenizer}}}
eval_tokenizer: {split: "", num_shown: 0}
"""


class Effect:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def tensors_of(family: str) -> dict[str, torch.Tensor]:
    """The published names and shapes: one number repeated, so that the file is small."""
    found = {}
    for line in (LAYOUTS / f"{FAMILIES[family][0]}.txt").read_text().splitlines():
        if match := re.match(r"([^#\s]\S*) \[([\d, ]*)\]", line):
            found[match[1]] = torch.zeros(()).expand([int(n) for n in match[2].split(",") if n.strip()])
    return found


def write_bad(family: str, damage: str, path: Path) -> str:
    """Writes a bad file of a family; returns words that the refusal must hold."""
    tensors, key = tensors_of(family), FAMILIES[family][3]
    last = next(name for name in reversed(tensors) if tensors[name].ndim == 4 and not name.startswith("loss."))
    said = {"extra": "strange.weight", "page": "HTML page", "truncated": "cut off", "code": "nothing was run"}
    if damage == "missing":
        del tensors[last]
    elif damage == "shape":
        tensors[last] = torch.zeros(3, 5)
    elif damage == "extra":
        tensors["strange.weight"] = torch.zeros(2)
    torch.save({key: tensors, "epoch": 1} if key else tensors, path)
    if damage == "page":
        path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "code":
        path.write_bytes(pickle.dumps({"state_dict": Effect(os.system, f"touch {path.parent / 'ran'}")}))
    return said.get(damage, last)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("damage", ["extra", "missing", "shape", "page", "truncated", "code"])
@pytest.mark.parametrize("family", FAMILIES)
def test_import_and_verify_refuse_in_one_line(
    family: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = FAMILIES[family][1]
    bad = tmp_path / "bad.pt"
    words = write_bad(family, damage, bad)
    entry = by_name(name)
    object.__setattr__(entry, "size", None)  # sizes and digests would refuse before the layout is looked at
    object.__setattr__(entry, "sha256", "")
    assert main(["weights", "import", name, str(bad)]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and str(bad) in said.err and words in said.err and not said.out, said.err
    assert not entry.target.exists(), "nothing was taken over"
    entry.target.parent.mkdir(parents=True, exist_ok=True)
    bad.rename(entry.target)
    assert main(["weights", "verify", name]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and "WRONG" in said.err and words in said.err, said.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("family", "damage"),
    [
        ("maskgit_vqgan", "missing"),
        ("taming", "code"),
        pytest.param("llamagen", "shape", marks=pytest.mark.slow),
        pytest.param("amused", "truncated", marks=pytest.mark.slow),
    ],
)
def test_a_run_with_bad_weights_ends_in_one_line(family: str, damage: str, tmp_path: Path, maskgit: Maskgit) -> None:
    for index in range(2):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), index, np.uint8)).save(tmp_path / "pictures" / f"{index}.png")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "one.yaml").write_text(EXPERIMENT)
    words = write_bad(family, damage, tmp_path / "bad.pt")
    asked = ["experiment=one", f"tokenizer={FAMILIES[family][2]}", f"tokenizer.weights={tmp_path / 'bad.pt'}"]
    asked += [f"dataset.root={tmp_path / 'pictures'}", f"paths.store={tmp_path / 'store'}", "tracking.ship=false"]
    done = maskgit("run", *asked, "--config-dir", str(tmp_path / "mine"))
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(said) == 1 and said[0].startswith("error: ") and words in said[0], said
    assert str(tmp_path / "bad.pt") in said[0] and not (tmp_path / "ran").exists()


def test_lpips_without_its_backbone_says_what_to_put_where(maskgit: Maskgit, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = EXPERIMENT.replace("maskgit_vqgan", "taming_f16_1024").replace("num_shown: 0", "num_shown: 0, lpips: vgg")
    (tmp_path / "mine" / "experiment" / "one.yaml").write_text(text)
    asked = ["experiment=one", f"dataset.root={tmp_path / 'pictures'}", "eval_tokenizer.lpips_backbone=lpips/vgg16"]
    torch.save({"state_dict": {}}, tmp_path / "some.ckpt")
    done = maskgit("run", *asked, f"tokenizer.weights={tmp_path / 'some.ckpt'}", "--config-dir", str(tmp_path / "mine"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert "lpips/vgg16" in done.stderr and "vgg16-397923af.pth" in done.stderr and "put " in done.stderr, done.stderr
