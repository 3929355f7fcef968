"""The README's figures are written by `tools/quickstart_figures.py` from what a run left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from maskgit_core.errors import ArtifactError
from tools.quickstart_figures import BEGIN, DISTANCE, END, main


def test_a_finished_run_fills_the_readme(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "experiments" / "quickstart"
    for step in ("evaluate", "sample"):
        (folder / step / "files").mkdir(parents=True)
    values = {(DISTANCE, "real images"): 390.0, (DISTANCE, "reconstructions"): 570.26, (DISTANCE, "samples"): 1234.5,
              (DISTANCE, "untrained model"): 3900.0, ("floor_to_ceiling", "samples"): 0.2406,
              ("class_accuracy", "samples"): 0.8, ("class_accuracy", "real images"): 0.882}  # fmt: skip
    scores = [{"name": name, "of": of, "value": value} for (name, of), value in values.items()]
    (folder / "evaluate" / "files" / "scores.json").write_text(json.dumps({"scores": scores}))
    (folder / "sample" / "request.json").write_text(json.dumps({"config": {"sampler": {"guidance_scale": 4.0}}}))
    (folder / "sample" / "files" / "grid.png").write_bytes(b"picture")
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    asked = ["--store", str(tmp_path / "store"), "--readme", str(readme)]
    readme.write_text("no marks")
    with pytest.raises(ArtifactError, match="lacks the marks"):
        main(asked)
    readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    main(asked)
    text = readme.read_text()
    assert "| **samples** (12 steps, guidance 4) | **1,234.5** |" in text and "= 0.241. A small" in text
    assert "names 80.0 % of the 500" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert (tmp_path / "docs" / "quickstart_samples.png").read_bytes() == b"picture"
    with pytest.raises(ArtifactError, match=r"scores.json: is missing; first run"):
        main(["--store", str(tmp_path / "nothing"), "--readme", str(readme)])


def test_the_readme_has_the_marks() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
