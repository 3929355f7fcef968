"""Bad input: one line, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import signal
import subprocess
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import mounted
from PIL import Image

from experiments import cli

FOLDER_EXPERIMENT = """\
# @package _global_
# The quickstart's first step over a folder of pictures.
defaults:
  - /dataset: image_folder
  - /tokenizer: vq
  - _self_
description: a folder of pictures
dataset: {image_size: 16, crop: none}
pipeline:
  steps:
    train_tokenizer: {stage: train_tokenizer}
train_tokenizer: {num_train_steps: 2, batch_size: 4, num_held_out: 2}
"""


def written(place: Path) -> list[str]:
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()) if place.exists() else []


def refused(done: subprocess.CompletedProcess[str], *said: str) -> bool:
    """True where it was refused as every bad request must be: exit code 2, one line, no traceback, saying this."""
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for text in said:
        assert text in lines[0], lines[0]
    return True


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two classes of small pictures, and an experiment over it in `mine/experiment`."""
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.png")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "pictures.yaml").write_text(FOLDER_EXPERIMENT)
    return tmp_path / "pictures"


def over(pictures: Path, *overrides: str) -> list[str]:
    own = str(pictures.parent / "mine")
    return ["experiment=pictures", f"dataset.root={pictures}", "launcher=inline", "tracking.ship=false", *overrides,
            "--config-dir", own]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment=quickstrat"], "did you mean quickstart?"),
        (["experiment=../secrets"], "is not a name"),
        (["experiment=/etc/passwd"], "is not a name"),
        ([], "experiment: missing"),
        (
            ["experiment=quickstart", "train.num_train_step=5"],
            "train.num_train_step: unknown key; did you mean num_train_steps?",
        ),
        (["experiment=quickstart", "sampler.num_step=5"], "sampler.num_step: unknown key; did you mean num_steps?"),
        (["experiment=quickstart", "train.lr=fast"], "train.lr: found 'fast' (text); it must be float"),
        (["experiment=quickstart", "train.label_drop=1.5"], "train.label_drop: 1.5 is out of range"),
        (["experiment=quickstart", "model.num_classes=10"], "model.num_classes: is derived"),
        (["experiment=quickstart", "model.codebook_size=10"], "model.codebook_size: is derived"),
        (["experiment=quickstart", "dataset.root=/no/such/folder"], "dataset.root: /no/such/folder"),
        (["experiment=quickstart", "paths.stroe=x"], "paths.stroe: unknown key; did you mean store?"),
        (["experiment=quickstart", "sampler=haltoon"], "sampler: there is no sampler 'haltoon'; did you mean halton?"),
        (["experiment=quickstart", "launcher.cores=many"], "launcher.cores: found 'many'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_requests(maskgit: Any, store: Path, arguments: list[str], said: str) -> None:
    assert refused(maskgit("run", *arguments), said)
    assert written(store) == []


def test_unknown_commands_and_options(maskgit: Any) -> None:
    assert refused(maskgit("rnu"), "rnu: unknown command; did you mean run?")
    assert maskgit("run", "--nonsense").returncode == 2


def test_an_unreadable_picture_is_named_and_counted(maskgit: Any, pictures: Path, store: Path) -> None:
    (pictures / "cats" / "3.png").write_bytes(b"this is no picture")
    (pictures / "dogs" / "1.png").write_bytes((pictures / "dogs" / "0.png").read_bytes()[:40])
    assert refused(maskgit("run", *over(pictures)), "3.png", "2 ")
    assert not list(store.glob("*/*/request.json"))


def test_what_a_change_of_content_or_of_an_artifact_does(maskgit: Any, pictures: Path, store: Path) -> None:
    assert maskgit("run", *over(pictures)).returncode == 0
    moved = pictures.rename(pictures.parent / "elsewhere")
    assert "1 steps: 1 done" in maskgit("plan", *over(moved)).stdout
    before = np.asarray(Image.open(moved / "cats" / "0.png"))
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(moved / "cats" / "0.png")
    plan = maskgit("plan", *over(moved)).stdout
    assert "1 to run" in plan and "content of dataset.root changed" in plan
    Image.fromarray(before).save(moved / "cats" / "0.png")
    assert "1 steps: 1 done" in maskgit("plan", *over(moved)).stdout, "the old content is the old identity"
    path = next(store.glob("train_tokenizer/*/files/weights.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert refused(
        maskgit("run", *over(moved)), "weights.safetensors: does not match the sha256 in its manifest", "--redo"
    )


def test_a_store_that_is_a_file_is_refused(maskgit: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert refused(maskgit("run", "experiment=quickstart", f"paths.store={tmp_path / 'file'}"), "choose another folder")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 600 kB; needs the right to mount."""
    yield from mounted(tmp_path / "disk", "600k")


def test_a_read_only_store_is_refused(maskgit: Any, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert refused(
        maskgit("run", "experiment=quickstart", f"paths.store={small_disk}/store"), "read-only", "paths.store"
    )
    assert written(small_disk) == []


def test_a_full_disk_is_refused_before_the_work(maskgit: Any, small_disk: Path) -> None:
    with pytest.raises(OSError), open(small_disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(b"x" * 1024)
    assert refused(maskgit("run", "experiment=quickstart", f"paths.store={small_disk}/store"), "disk is full")
    assert written(small_disk) == ["ballast"]


def test_a_disk_that_fills_up_under_a_step_costs_nothing_done(maskgit: Any, pictures: Path, small_disk: Path) -> None:
    store = small_disk / "store"
    done = maskgit("run", *over(pictures, f"paths.store={store}"))  # the weights do not fit
    assert refused(done, "disk is full")
    assert not list(store.glob("*/*/manifest.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = maskgit("run", *over(pictures, f"paths.store={store}"))
    assert again.returncode == 0, again.stderr


def test_an_interrupt_inside_a_callback_of_the_garbage_collector_is_not_lost(monkeypatch, capsys):
    """Python prints a KeyboardInterrupt that is raised there and goes on; a drill met one in SQLAlchemy's."""

    def interrupted(name):
        def work(args):
            keep = type("Held", (), {})()
            dropped = weakref.ref(keep, lambda reference: signal.raise_signal(signal.SIGINT))
            del keep
            assert dropped() is None
            time.sleep(10)
            return 0

        return SimpleNamespace(main=work)

    monkeypatch.setattr(cli, "import_module", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    try:
        began = time.monotonic()
        assert cli.main(["status"]) == 130 and time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "error: interrupted; run the same command to go on\n"
