"""The ablation of tokenizers: its committed runs, and the tables that the page shows of them."""

import csv
import statistics

from conftest import ROOT

from experiments.config.points import plan_configs
from experiments.results.tables import read_table
from tools.tokenizer_ablation import COLUMNS, EXPERIMENT, LOSSES, QUANTIZERS, as_csv, figure

PAGE = ROOT / "docs" / "tokenizer_ablation.md"
TABLES = {
    "tokenizer_ablation_fashion": {"psnr": 2, "fd_reconstructions": 1, "codes_used": 2, "code_perplexity": 0},
    "tokenizer_ablation_samples": {"fd_samples": 1},
}


def committed() -> list[dict[str, str]]:
    with (ROOT / "docs" / "tokenizer_ablation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_committed_run_for_every_point_of_the_sweep() -> None:
    points, _ = plan_configs([f"experiment={EXPERIMENT}"])
    found = [(row["quantizer"], row["losses"], row["seed"]) for row in committed()]
    asked = [(q, losses, str(seed)) for q in QUANTIZERS for losses in LOSSES for seed in (0, 1, 2)]
    assert found == asked and len(points) == len(asked) == 27
    assert list(committed()[0]) == list(COLUMNS)
    assert len({row["tokenizer_sha256"] for row in committed()}) == 27, "every run trained a tokenizer of its own"
    assert as_csv(committed()) == (ROOT / "docs" / "tokenizer_ablation.csv").read_text()
    assert len(figure(committed()).axes) == 4


def test_the_pages_tables_are_made_from_the_committed_runs() -> None:
    page = PAGE.read_text()
    for name, columns in TABLES.items():
        shown = page.partition(f"maskgit table {name}\n")[2] or page
        for row in read_table(name).rows:
            quantizer, losses = row.name.lower().split(", ")
            runs = [run for run in committed() if (run["quantizer"], run["losses"]) == (quantizer, losses)]
            cells = []
            for column, digits in columns.items():
                values = [float(run[column]) for run in runs]
                cells.append(f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
            lines = [line for line in shown.splitlines() if line.startswith(f"| {row.name} |")]
            assert any(all(cell in line for cell in cells) for line in lines), (row.name, cells, lines)
