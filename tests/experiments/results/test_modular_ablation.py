"""The ablation of a transformer's parts: its committed runs, and the table that the page shows of them."""

import csv
import re

import pytest
from conftest import ROOT

from maskgit_core.errors import ArtifactError
from tools.modular_ablation import COLUMNS, NAMES, PARTS, named, page_table

ROWS = list(csv.DictReader((ROOT / "docs" / "modular_ablation.csv").open()))
PLAIN = {f"model.{key}": plain for key, (plain, _) in PARTS.items()}


def test_the_page_shows_the_committed_runs() -> None:
    """Eight models with three seeds each, all traced."""
    assert tuple(ROWS[0]) == COLUMNS
    assert [(row["model"], row["seed"]) for row in ROWS] == [(name, str(seed)) for name in NAMES for seed in range(3)]
    assert all(re.fullmatch(r"[0-9a-f]{16}", row["model_sha256"]) for row in ROWS)
    assert len({row["model_sha256"] for row in ROWS}) == len(ROWS) and len({row["commit"] for row in ROWS}) == 1
    assert page_table(ROWS) in (ROOT / "docs" / "modular_ablation.md").read_text()


def test_a_run_belongs_to_the_row_of_its_one_part() -> None:
    assert named(PLAIN) == "plain" and named({**PLAIN, "model.qk_norm": "true"}) == "query-key norm"
    assert named(dict.fromkeys(PLAIN, "other")) == "all six"
    with pytest.raises(ArtifactError, match="differs in rotary positions, SwiGLU"):
        named({**PLAIN, "model.positions": "rotary", "model.mlp": "swiglu"})
