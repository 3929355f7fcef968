"""A trained model goes to a hub (a server here that speaks its API), comes back checked, and loads by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tools.local_hub import local_hub

TINY = ["experiment=quickstart", "launcher=inline", "tracking.ship=false", "toy=true"]
LOADED = """
import maskgit_core as mg
model, tokenizer = mg.load_model("hf:me/garments"), mg.load_tokenizer("hf:me/garments")
print(tuple(mg.sample(model, tokenizer, labels=[0, 1]).shape))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the quickstart's toy was trained; its store is `toy-store`."""
    place = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "run", *TINY, f"paths.store={place}/store"],
        cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(path.parent for path in place.rglob("experiments") if (path.parent / "pipelines").is_dir())


def test_push_pull_and_load_by_name(trained: Path, maskgit, tmp_path: Path) -> None:
    with local_hub() as (address, repositories):
        env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
        done = maskgit("push", "quickstart/train", "me/garments", "--licence", "mit", "--store", str(trained), env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        files = repositories["me/garments"]
        assert set(files) == {"README.md", "model.json", "model.safetensors", "tokenizer.json", "weights.safetensors",
                              "sha256.json"}  # fmt: skip
        text = files["README.md"].decode()
        assert text.startswith('---\nlicense: "mit"\n') and 'mg.load_model("hf:me/garments")' in text
        assert "## Scores" in text and "| FD (" in text and "efficientnet_lite0" in text and "fingerprint" in text
        pulled = maskgit("pull", "me/garments", env=env)
        assert pulled.returncode == 0 and 'mg.load_tokenizer("hf:me/garments")' in pulled.stdout, pulled.stderr
        loaded = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT), **env})  # fmt: skip
        assert loaded.stdout.startswith("(2, "), loaded.stderr[-800:]

        files["sha256.json"] = json.dumps({"model.json": "0" * 64}).encode()
        again = maskgit("pull", "me/garments", env={**env, "HF_HOME": str(tmp_path / "other")})
        assert again.returncode == 2 and "model.json is not the file that was sent" in again.stderr
        gone = maskgit("pull", "me/nothing", env=env)
        assert gone.returncode == 2 and "the hub refused" in gone.stderr and "Traceback" not in gone.stderr


def test_only_models_and_tokenizers_are_sent(trained: Path, maskgit, tmp_path: Path) -> None:
    done = maskgit("push", "quickstart/evaluate", "me/x", "--store", str(trained))
    assert done.returncode == 2 and "makes scores, not a model or a tokenizer" in done.stderr
    named = maskgit("push", "quickstart/train", "../x", "--store", str(trained))
    assert named.returncode == 2 and "write owner/name" in named.stderr
    wrote = maskgit(
        "push", "quickstart/train_tokenizer", "me/t", "--to", str(tmp_path / "card"), "--store", str(trained)
    )
    assert wrote.returncode == 0 and (tmp_path / "card" / "tokenizer.json").is_file()
    assert not (tmp_path / "card" / "model.json").exists()
