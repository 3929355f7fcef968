"""The ablation of mask schedules: its committed runs, the table made from them, and a corner of it run again."""

import csv
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from small_fashion import write_small_fashion

from experiments.config.points import plan_configs
from experiments.results.tables import fill, read_table
from maskgit_core.masking import SCHEDULES
from tools.ablation_files import as_csv
from tools.schedule_ablation import COLUMNS, EXPERIMENT, NLL, figure, rows

RUNS = ROOT / "docs" / "schedule_ablation.csv"
PAGE = ROOT / "docs" / "schedule_ablation.md"
CORNER = "zip:\n  train.mask_schedule: [cosine, log]\n  sampler.schedule: [cosine, log]\nseeds: [0]\n"


def committed() -> list[dict[str, str]]:
    with RUNS.open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_committed_run_for_every_point_of_the_sweep() -> None:
    points, _ = plan_configs([f"experiment={EXPERIMENT}"])
    asked = {(point["train.mask_schedule"], point["train.seed"]) for point in points}
    assert all(point["train.mask_schedule"] == point["sampler.schedule"] for point in points)
    assert {(row["schedule"], int(row["seed"])) for row in committed()} == asked and len(committed()) == len(
        asked
    ) == 24
    assert {name for name, _ in asked} == set(SCHEDULES) - {"power"}, "`power` is the family of four of them"


def test_committed_runs_are_well_formed() -> None:
    found = committed()
    assert list(found[0]) == list(COLUMNS)
    assert len({row["model_sha256"] for row in found}) == len(found), "every run trained a model of its own"
    assert all(re.fullmatch(r"[0-9a-f]{12}", row["commit"]) for row in found)
    for row in found:
        numbers = [float(row[column]) for column in ("fd", *NLL, "train_seconds", "sample_seconds")]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert float(row["nll_25"]) < float(row["nll_100"]), "the more is masked, the less is known"


def test_the_pages_table_is_made_from_the_committed_runs() -> None:
    """`maskgit table` gives mean and deviation over the seeds; the page shows its output."""
    page = PAGE.read_text()
    for row in read_table(EXPERIMENT).rows:
        assert row.run is not None
        schedule = row.run["where"]["train.mask_schedule"]
        values = [float(run["fd"]) for run in committed() if run["schedule"] == schedule]
        cell = f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        line = next(line for line in page.splitlines() if line.startswith(f"| {row.name} |"))
        assert cell in line, f"{line} lacks {cell}"


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which two schedules went through the real pipeline, on few pictures and for few steps."""
    place = tmp_path_factory.mktemp("corner")
    (place / "corner.yaml").write_text(CORNER)
    data = write_small_fashion(place / "data", 120, 40)
    small = [
        f"dataset.root={data}", f"sweep={place / 'corner.yaml'}", "launcher=inline", "tracking.ship=false",
        "train_tokenizer.num_train_steps=6", "train_tokenizer.num_held_out=20", "reference_statistics.num_images=40",
        "train.num_train_steps=8", "train.warmup_steps=2", "train.held_out_share=0.1", "sampler.num_steps=3",
        "sample.num_samples=20", "evaluate.num_images=20",
    ]  # fmt: skip
    environment = {**os.environ, "MASKGIT_STORE": str(place / "store"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "experiments.cli", "run", f"experiment={EXPERIMENT}", *small],
                          capture_output=True, text=True, env=environment, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "store"


def test_a_corner_run_again_gives_rows_table_and_chart(corner: Path) -> None:
    found = rows(corner)
    assert [(row["schedule"], row["seed"]) for row in found] == [("cosine", 0), ("log", 0)]
    assert as_csv(found, COLUMNS).splitlines()[0] == ",".join(COLUMNS) and figure(found) is not None
    filled = fill(read_table(EXPERIMENT), corner)
    cells = {row.name: cells["fd"] for row, cells in zip(filled.table.rows, filled.cells, strict=True)}
    assert cells["Cosine"].reproduced is not None and cells["Logarithmic"].reproduced is not None
    assert cells["Cosine"].reproduced.mean == pytest.approx(found[0]["fd"], abs=1e-4)
    assert cells["Logarithmic"].reproduced.mean == pytest.approx(found[1]["fd"], abs=1e-4)
    assert "not run yet" in str(cells["Linear"].missing)
    assert found[0]["model_sha256"] != found[1]["model_sha256"]
