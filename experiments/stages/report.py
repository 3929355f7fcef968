"""One page about a pipeline (`experiments/reporting/`): its number in its place, samples, curves, protocols.

The page is self-contained (pictures inlined, no script) and contains only what follows from its inputs and their
execution, so the same inputs give the same bytes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from experiments.config.specs import Input
from experiments.reporting.page import page, record_of
from experiments.running.attempt import Attempt
from experiments.store.paths import StepFolder
from maskgit_core.hints import Kind

VERSION = 1  # a page's looks are no reason to make it again; `maskgit report NAME` draws any run's page as it is now
PRODUCES = "report"
UNTITLED = "Report"


def run(
    attempt: Attempt,
    *,
    scores: Annotated[list[Input], Kind("scores")],
    tokenizer_scores: Annotated[list[Input], Kind("tokenizer_scores")],
    samples: Annotated[list[Input], Kind("samples")],
    models: Annotated[list[Input], Kind("model")],
    tokenizers: Annotated[list[Input], Kind("tokenizer")],
    title: str = "Report",
) -> None:
    """Writes `report.html` and, beside it, its curves as PNG and SVG and copies of the pictures.

    Args:
        scores, tokenizer_scores, samples, models, tokenizers: whatever the pipeline has; each may be empty.
        title: the page's heading; "Report": the experiment's name.
    """
    everything = [*tokenizers, *tokenizer_scores, *samples, *models, *scores]
    inputs = list({i.fingerprint: i for i in everything}.values())
    made = page(
        inputs, record_of(StepFolder(attempt.folder).store, attempt.folder), None if title == UNTITLED else title
    )
    for name, data in made.beside.items():
        path = attempt.files / name
        attempt.publish(path, partial(_write, data))
        if path.suffix == ".png" or name.startswith(("values", "sweep")):
            attempt.show(path)
    attempt.publish(attempt.files / "report.html", partial(_write, made.text.encode()))
    attempt.show(attempt.files / "report.html")


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)
