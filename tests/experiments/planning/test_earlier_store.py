"""A store made before files moved (commit 4c262e8) is used as it is: everything done, nothing reported as changed.

`goldens/earlier_store.tar.xz` holds the documents of a short quickstart run by that commit; outputs are made here as
empty files of the recorded size and time, which is what a plan looks at.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

#: What to do where a change of science code, results unchanged, makes the first test fail.
REMEDY = "if results are what they were, run `python -m tools.earlier_code 4c262e8`; else see its option --but"

ARCHIVE = Path(__file__).with_name("goldens") / "earlier_store.tar.xz"
REQUEST = [
    "experiment=earlier_quickstart",  # the quickstart as it was then
    "--config-dir",
    str(ARCHIVE.with_name("earlier_conf")),
    "train_tokenizer.num_train_steps=40",
    "train.num_train_steps=40",
    "train.checkpoint_every=20",
    "sample.num_samples=40",
    "sample_untrained.num_samples=40",
    "evaluate.num_images=40",
    "evaluate.classifier_steps=10",
    "eval_tokenizer.num_images=40",
    "reference_statistics.num_images=100",
]


@pytest.fixture
def earlier_store(tmp_path: Path) -> Path:
    """The unpacked store."""
    root = tmp_path / "earlier"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    for path in root.glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        files = path.parent / "attempts" / f"{manifest['attempt']:04d}" / "files"
        for name, output in manifest["outputs"].items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            with open(files / name, "wb") as file:
                file.truncate(output["size"])
            os.utime(files / name, ns=(output["mtime_ns"], output["mtime_ns"]))
    return root


def test_an_earlier_store_plans_as_all_done_without_a_warning(maskgit, earlier_store):
    done = maskgit("plan", *REQUEST, f"paths.store={earlier_store}")
    assert done.returncode == 0, done.stderr
    assert "9 steps: 9 done" in done.stdout and "warning" not in done.stdout + done.stderr, f"{REMEDY}\n{done.stdout}"


def test_code_that_changed_since_is_reported(maskgit, earlier_store):
    (path,) = earlier_store.glob("train/*/record.json")
    record = json.loads(path.read_text())
    record["science_files"]["maskgit_core.losses"] = "0" * 64
    path.write_text(json.dumps(record))
    done = maskgit("plan", *REQUEST, f"paths.store={earlier_store}")
    assert "warning: train: its code has changed since it ran (maskgit_core.losses)" in done.stdout + done.stderr
