"""The arena's files: evaluations as they are made, and the committed rows beside the page."""

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from experiments.config.specs import SamplerSpec
from maskgit_core import rng
from maskgit_core.errors import ArtifactError
from maskgit_core.models.prenorm import Model
from tools.sampler_arena import Cell, as_csv, evaluations, reuse_table, table, with_earlier

ROWS = list(csv.DictReader((ROOT / "docs" / "sampler_arena.csv").open()))


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 6), ({"guidance_scale": 2.0}, 12), ({"guidance_scale": 2.0, "guidance_start": 0.5}, 9),
     ({"guidance_scale": 2.0, "guidance_schedule": "exponential"}, 11)],
)  # fmt: skip
def test_evaluations_are_those_that_a_model_sees(options: dict[str, Any], count: int) -> None:
    model = Model(codebook_size=8, num_tokens=64, num_classes=3, dim=16, num_layers=1, num_heads=2).eval()
    rows: list[int] = []
    model.blocks[0].register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
    options = {"num_steps": 6, **options}
    SamplerSpec("confidence", options).build().sample(
        model, torch.tensor([1]), grid=(8, 8), seeds_B=rng.sample_seeds(0, torch.arange(1))
    )
    assert sum(rows) == evaluations("confidence", options) == count


def cell(row: dict[str, str]) -> Cell:
    numbers = {"guidance": float, "fd": float, "cpu_ms_per_image": float}
    whole = ("num_steps", "full_every", "seed", "evaluations", "num_images")
    typed: dict[str, Any] = {k: numbers[k](v) if k in numbers else int(v) if k in whole else v for k, v in row.items()}
    return Cell(**typed, images=ROOT)


def test_earlier_rows_stand_in_place_of_equal_cells(tmp_path: Path) -> None:
    made = cell(ROWS[0])
    earlier = tmp_path / "earlier.csv"
    earlier.write_text(as_csv([made, cell(ROWS[1])]))
    again = dataclasses.replace(made, cpu_ms_per_image=99.0, images=tmp_path)
    new = dataclasses.replace(made, samples="f" * 12)
    merged = {c.samples: c for c in with_earlier([again, new], earlier)}
    assert len(merged) == 3 and merged[new.samples] == new
    assert merged[made.samples] == dataclasses.replace(made, images=tmp_path)
    with pytest.raises(ArtifactError, match=f"samples {made.samples} have the pictures {made.images_sha256} and in"):
        with_earlier([dataclasses.replace(made, images_sha256="0" * 16)], earlier)


def test_the_page_shows_the_committed_rows() -> None:
    """210 cells of fourteen forms at five budgets with three seeds, each traced; the tables follow from them."""
    cells = [cell(row) for row in ROWS]
    arena, reused = [c for c in cells if c.num_images == 100], [c for c in cells if c.num_images == 200]
    assert len({(c.name, c.num_steps, c.seed) for c in arena}) == len(arena) == 14 * 5 * 3
    assert all(
        re.fullmatch(r"[0-9a-f]{12}", c.samples) and re.fullmatch(r"[0-9a-f]{16}", c.images_sha256) for c in cells
    )
    page = (ROOT / "docs" / "sampler_arena.md").read_text()
    assert table(arena) in page and reuse_table(reused) in page
