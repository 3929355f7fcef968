"""The ablation of tokenizers: its committed runs, and the table that the page shows of them."""

import csv

from conftest import ROOT

from experiments.config.points import plan_configs
from experiments.results.tables import read_table
from tools.ablation_files import as_csv
from tools.tokenizer_ablation import COLUMNS, EXPERIMENT, LOSSES, QUANTIZERS, SCORES, figure

RUNS, PAGE = ROOT / "docs" / "tokenizer_ablation.csv", ROOT / "docs" / "tokenizer_ablation.md"
DIGITS = {"psnr": 2, "fd_reconstructions": 1, "codes_used": 2, "code_perplexity": 0, "fd_samples": 1}


def committed() -> list[dict[str, str]]:
    with RUNS.open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_committed_run_for_every_point_of_a_seed() -> None:
    points, _ = plan_configs([f"experiment={EXPERIMENT}", "sweep.seeds={train_tokenizer.seed: [0]}"])
    found = [(row["quantizer"], row["losses"], row["seed"]) for row in committed()]
    assert found == [(q, losses, "0") for q in QUANTIZERS for losses in LOSSES] and len(points) == len(found)
    assert list(committed()[0]) == list(COLUMNS) and set(SCORES) < set(COLUMNS)
    assert len({row["tokenizer_sha256"] for row in committed()}) == len(found), "each trained a tokenizer of its own"
    assert as_csv(committed(), COLUMNS) == RUNS.read_text() and len(figure(committed()).axes) == 4


def test_the_pages_table_is_made_from_the_committed_runs() -> None:
    lines = PAGE.read_text().splitlines()
    runs = {f"{run['quantizer'].upper()}, {run['losses']}": run for run in committed()}
    for name in ("tokenizer_ablation_fashion", "tokenizer_ablation_samples"):
        for row in read_table(name).rows:
            cells = [f"{float(runs[row.name][column]):.{digits}f}" for column, digits in DIGITS.items()]
            assert f"| {row.name} | {' | '.join(cells)} |" in lines
