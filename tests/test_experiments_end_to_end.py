"""Every shipped experiment runs to its last step, table and report included: its own command, as a toy.

The list is read from the folder, so a new experiment is tested by existing. `toy=true` replaces what conf/toy.yaml says
and nothing else: the same steps, stages, recipes, orders, protocols. The data are small copies of the real layouts.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from PIL import Image
from toy_data import write_cifar10, write_ffhq, write_ilsvrc, write_samples, write_torch_statistics, write_virtual

from experiments.cli import main
from experiments.config.compose import group_names
from experiments.results.row_requests import RowRequests
from experiments.results.tables import fill, read_table, table_names
from maskgit_core.files import read_json

CONF = ROOT / "conf"
EXPERIMENTS = group_names("experiment")


def command(experiment: str) -> list[str]:
    """The arguments of the command in an experiment's header."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    found = re.search(r"^# Command +maskgit run (.+)$", text, re.MULTILINE)
    assert found, f"conf/experiment/{experiment}.yaml: its header has no line `# Command   maskgit run ...`"
    return shlex.split(found[1])


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the capital words of the commands stand for."""
    folder = tmp_path_factory.mktemp("toys")
    return {
        "IMAGENET": str(write_ilsvrc(folder / "imagenet")),
        "FOLDER": str(write_cifar10(folder / "cifar10")),
        "FFHQ": str(write_ffhq(folder / "ffhq")),
        "SAMPLES": str(write_samples(folder / "samples.npz")),
        "VIRTUAL": str(write_virtual(folder / "virtual.npz")),
        "HALTON": str(write_torch_statistics(folder / "statistics.pt")),
    }


def filled_in(arguments: list[str], places: dict[str, str]) -> list[str]:
    """The same arguments with real paths."""
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        word = "VIRTUAL" if re.fullmatch(r"VIRTUAL\w*\.npz", value) else value
        word = "HALTON" if re.fullmatch(r"ImageNet_\w+\.pt", value) else word
        found.append(f"{key}={places.get(word, value)}")
    return found


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, a store, and no published weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKGIT_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_to_its_end(
    experiment: str, places: dict[str, str], at_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if experiment == "own_images":  # pictures in class folders, without splits
        places = {**places, "FOLDER": f"{places['FOLDER']}/train"}
    arguments = [*filled_in(command(experiment), places), "toy=true"]
    assert main(["run", *arguments]) == 0, capfd.readouterr()
    store = at_home / "runs-toy"
    capfd.readouterr()
    assert main(["plan", "--json", *arguments]) == 0
    steps = json.loads(capfd.readouterr().out)["steps"]
    assert steps and {step["action"] for step in steps} == {"done"}, "the same plan, and nothing left of it"
    for step in steps:
        manifest = read_json(Path(step["folder"]) / "manifest.json")
        assert manifest and all((Path(step["folder"]) / "files" / name).exists() for name in manifest["outputs"]), step
    assert not (at_home / "runs").exists(), "a toy leaves the real store alone"
    for table in table_names():
        if experiment in {row.run["experiment"] for row in read_table(table).rows if row.run}:
            assert main(["table", table, "--store", str(store)]) == 0
            assert main(["table", table]) == 0, "and the real store's table is as empty as before"
            filled = fill(read_table(table), store, RowRequests())
            cells = [c for row in filled.cells for c in row.values()]
            assert not any(cell.reproduced for cell in cells), table
            runs = [row.run for row in filled.table.rows if row.run and row.run["experiment"] == experiment]
            if not all(run.get("where") for run in runs):  # else rows look for values that a toy has not
                assert any(cell.differs for cell in cells), table


def test_a_row_is_filled_by_its_own_toy_and_by_no_other(
    places: dict[str, str], at_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The toy of an ImageNet table's experiment, named as an experiment and a row of its own."""
    asked = ["experiment=tokenizer_table", f"dataset.root={places['IMAGENET']}", "toy=true"]
    assert main(["config", *asked]) == 0
    config = {k: v for k, v in yaml.safe_load(capfd.readouterr().out).items() if k != "toy"}
    table = yaml.safe_load((CONF / "table" / "tokenizers.yaml").read_text())
    rows = [{**row, "run": {**row["run"], "experiment": "renamed"}} for row in table["rows"] if row.get("run")]
    for folder, name, content in (("experiment", "renamed", config), ("table", "renamed", {**table, "rows": rows})):
        (at_home / "conf" / folder).mkdir(parents=True)
        text = "# @package _global_\n" + yaml.safe_dump(content)
        (at_home / "conf" / folder / f"{name}.yaml").write_text(text)
    dirs, store = ["--config-dir", str(at_home / "conf")], at_home / "runs-toy"
    assert main(["run", *asked, "--only", "maskgit_vqgan"]) == 0, capfd.readouterr()
    smoke = fill(read_table("tokenizers"), store, RowRequests()).cells[0]["psnr"]
    assert smoke.reproduced is None and smoke.differs and "dataset.partial true (not false)" in smoke.differs
    assert main(["run", "experiment=renamed", *dirs, "--only", "maskgit_vqgan"]) == 0, capfd.readouterr()
    cells = fill(read_table("renamed", [at_home / "conf"]), store, RowRequests([at_home / "conf"])).cells
    assert [cell["psnr"].reproduced is not None for cell in cells] == [True] + [False] * (len(cells) - 1)
    assert main(["table", "renamed", *dirs, "--store", str(store)]) == 0
    assert "(10 images; reference the same images)" in capfd.readouterr().out


def test_pictures_are_kept_as_asked(at_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every reconstruction, samples by class, training grids of some classes with guidance."""
    asked = ["experiment=quickstart", "toy=true", "eval_tokenizer.save=png", "sample.png=true",
             "sample.png_folders=class", "train.samples_every=4", "train.samples_guidance=2.0"]  # fmt: skip
    assert main(["plan", *asked, "train.samples_classes=[3,10]"]) == 2
    assert "train.samples_classes" in capfd.readouterr().err
    parts = ["--until", "sample", "--until", "eval_tokenizer"]
    assert main(["run", *asked, "train.samples_classes=[3,7]", *parts]) == 0, capfd.readouterr()
    experiment = at_home / "runs-toy" / "experiments" / "quickstart"
    reconstructions = sorted(p.name for p in (experiment / "eval_tokenizer/files/reconstructions").glob("*.png"))
    assert reconstructions == [f"{index:06d}.png" for index in range(10)]
    folder = experiment / "sample/files/png"
    samples = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*"))
    assert samples == [f"{index:04d}/{index:06d}.png" for index in range(6)], "sample i has class i"
    (grid,) = (experiment / "train/files/samples").glob("step-*4.png")
    with Image.open(grid) as picture:
        assert picture.width > 3 * picture.height, "two rows of eight"
