"""Requests that once failed after hours, or were taken for something else, and what is said of each before any work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from toy_data import write_ffhq, write_ilsvrc, write_virtual

from experiments.cli import main

#: Features without published weights.
R = "extractor.weights=null extractor.random_seed=0"
V = "reference_statistics.statistics=VIRTUAL"
PARTIAL = "dataset.root=IMAGENET dataset.partial=true"
PAPER = "experiment=maskgit_imagenet256"
#: The request, its exit code, and what the first line of its refusal (or its plan) says.
ROWS = [
    (f"{PAPER} dataset.root=IMAGENET/train {R}", 2, r"^error: .*/imagenet/train: no split train here; looked for"),
    (f"{PAPER} dataset.root=IMAGENET/train {V} {R}", 2, r"^error: .*/imagenet/train: no split train here; looked for"),
    (f"{PAPER} dataset.root=ONLY_TRAIN dataset.partial=true {V} {R}", 2, r"^error: .*/only_train: no split val here"),
    (f"{PAPER} dataset.root=IMAGENET {V} {R}", 2, r"^error: .*/imagenet: 4 classes in split train, ILSVRC 2012 has"),
    (f"{PAPER} dataset=imagenet {PARTIAL} {V} {R}", 0, r"5 steps: 5 to run"),
    (f"{PAPER} {R}", 2, r"^error: dataset.root: .*none of these exists; put"),
    ("experiment=own_images dataset.root=IMAGENET", 2, r"^error: .*its folders \[train, val\] are splits, not"),
    ("experiment=own_images dataset.root=SPLITS", 2, r"^error: .*its folders \[test, train, val\] are splits"),
    (f"experiment=maskgit_ffhq256 dataset.root=FLAT {R}", 2, r"^error: .*/flat: 20 pictures, FFHQ has 70,000;"),
    (f"experiment=maskgit_ffhq256 dataset.root=FLAT dataset.partial=true dataset.num_val=4 evaluate.subset_size=10 {R}",
     0, r"5 steps: 5 to run"),
    ("experiment=evaluate_samples", 2, r"^error: samples: missing; give the file or folder with samples=PATH$"),
    (f"{PAPER} {PARTIAL} ~pipeline.steps.evaluate ~pipeline.steps.reference_statistics", 0, r"3 steps: 3 to run"),
    (f"{PAPER} {PARTIAL} {V} --until train", 0, r"2 steps: 2 to run"),
    (f"{PAPER} {PARTIAL} {V}", 0,
     r"cache_tokens +to run +needs weights titok/maskgit-vqgan-imagenet-f16-256"),
    (f"experiment=tokenizer_table {PARTIAL} eval_tokenizer.lpips=none", 0,
     r"(?s)\A(?!.*lpips).*llamagen_f8 .*amused_512 "),
    (f"{PAPER} {PARTIAL} data=images {V}", 0, r"4 steps: 4 to run"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("late")
    imagenet = write_ilsvrc(folder / "imagenet", train=4, val=3)
    shutil.copytree(imagenet / "train", folder / "only_train" / "train")
    write_ffhq(folder / "ffhq")
    (folder / "flat").mkdir()
    for picture in sorted((folder / "ffhq").rglob("*.png")):
        shutil.copy(picture, folder / "flat" / picture.name)
    for split in ("train", "val", "test"):
        (folder / "splits" / split).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "splits" / split / "a.png")
    places = {"IMAGENET": imagenet, "ONLY_TRAIN": folder / "only_train", "FLAT": folder / "flat"}
    places |= {"SPLITS": folder / "splits", "VIRTUAL": write_virtual(folder / "virtual.npz")}
    return {word: str(place) for word, place in places.items()}


@pytest.mark.parametrize(("request_text", "code", "said"), ROWS, ids=[row[0][:90] for row in ROWS])
def test_what_a_plan_says(
    request_text: str, code: int, said: str, data: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("MASKGIT_HOME", "TORCH_HOME", "MASKGIT_STORE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    words = [re.sub(r"=([A-Z_]+)\b", lambda m: f"={data.get(m[1], m[1])}", word) for word in request_text.split()]
    found = main(["plan", *words])
    out, err = capsys.readouterr()
    shown = err if code else out
    assert found == code and re.search(said, shown.strip()), f"{found}\n{out}\n{err}"
    assert "Traceback" not in shown and (not code or shown.strip().count("\n") == 0)


def test_help_names_keys_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = capsys.readouterr().out
    assert "model.num_layers" in text and "model.depth" not in text


def test_the_command_of_an_empty_cell_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "maskgit_imagenet256", "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    virtual = "VIRTUAL_imagenet256_labeled.npz"
    assert f"{PAPER} dataset.root=IMAGENET reference_statistics.statistics={virtual}" in shown
    assert f"IMAGENET, {virtual}: data of yours; docs/reproducing.md says which" in shown


@pytest.mark.parametrize(("table", "protocol"), [("halton_models", "halton_v2"), ("maskgit_pytorch_guidance", "adm")])
def test_published_numbers_stand_under_a_protocol_that_runs_have(
    table: str, protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", table, "--store", str(tmp_path)]) == 0
    assert f"({protocol})" in capsys.readouterr().out
