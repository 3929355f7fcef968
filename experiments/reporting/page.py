"""One self-contained page about a pipeline: what it is, its number in its place, samples, curves, protocols.

It loads nothing, runs no script, and escapes every value. The same finished steps give the same page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.specs import Input
from experiments.reporting import numbers, sweep
from experiments.reporting.about import about, commit_of
from experiments.reporting.pictures import caption, gallery
from experiments.results import html
from experiments.results.plots import curve_figure, panels, rendered
from experiments.store.documents import Launch, Manifest, Record
from experiments.store.journal import Point, read_points
from experiments.store.records import PipelineRecord, PipelineStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Measured speed and waiting say how it ran, not what came out; MLflow shows them.
NOT_RESULTS = ("seconds", "per_s", "time", "wait", "memory", "throughput", "utilisation", "tflops")
KINDS = ("tokenizer", "tokenizer_scores", "samples", "model", "scores")
#: Titles of panels that mean something else in each kind of training.
TITLES = {"tokenizer": {"loss": "loss (weighted sum)"}, "model": {"loss": "loss (nats per masked token)"}}
MAX_PICTURES = 24
MAX_TABLE = 200


@dataclass(frozen=True)
class Page:
    """A page and the files beside it."""

    text: str
    beside: Mapping[str, bytes]


def page(inputs: Sequence[Input], record: PipelineRecord | None = None, title: str | None = None) -> Page:
    """The page about finished steps.

    Args:
        inputs: steps of the kinds in `KINDS`, each once; whatever the pipeline has.
        record: the execution that the page is about.
        title: the heading; None: the experiment's name.
    """
    ordered = [i for kind in KINDS for i in inputs if i.kind == kind]
    measured = [i for i in ordered if i.kind in ("tokenizer_scores", "scores")]
    scores = [i for i in ordered if i.kind == "scores"]
    swept = scores if len(scores) > 1 else measured if len(measured) > 1 and not scores else []
    ranked = sweep.headlines(swept) if len(swept) > 1 else []
    beside: dict[str, bytes] = {}
    shown = about(record, ordered, title)
    samples = gallery(scores[0]) if len(scores) == 1 else None
    text = html.render(
        "report",
        title=shown.title,
        about=shown,
        placed=numbers.placed(ranked[0][0] if ranked else measured[-1]) if measured else None,
        best=numbers.label_of(ranked[0][0]) if ranked else None,
        gallery=samples,
        cards=sweep.cards(ranked),
        cut=len(ranked) - sweep.MAX_CARDS,
        charts=_charts(swept, ranked, beside),
        scores=sweep.table(swept[:MAX_TABLE]) if swept else numbers.table(measured),
        floors=[*numbers.other_code(measured), *numbers.floors_differ(measured)],
        pictures=_pictures(ordered, beside, without_samples=samples is not None or bool(ranked)),
        curves=_curves(ordered, beside),
        protocols=numbers.protocols(measured),
        configs=[(numbers.label_of(i), json.dumps(dict(i.config), indent=2, sort_keys=True)) for i in ordered],
        provenance=_provenance(ordered),
    )
    return Page(text, beside)


def inputs_of(store: Path, record: PipelineRecord) -> list[Input]:
    """The finished steps of an execution that a page shows."""
    wanted = [step for step in record.steps if step.kind in KINDS]
    read = [item for step in wanted if (item := _input(store, step)) is not None]
    return list({i.fingerprint: i for i in read}.values())


def _input(store: Path, step: PipelineStep) -> Input | None:
    from experiments.store.documents import Request

    folder = store / step.folder
    manifest, request = Manifest.read(folder), Request.read(folder)
    if manifest is None or request is None:
        return None
    return Input(step.step, step.kind, folder, step.fingerprint, manifest.facts, request.config, step.params)


def record_of(store: Path, folder: Path) -> PipelineRecord | None:
    """The execution that a step's newest launch belongs to."""
    launch = Launch.read(folder)
    return PipelineRecord.of(store, launch.pipeline) if launch is not None else None


def _charts(
    swept: Sequence[Input], ranked: Sequence[tuple[Input, Any]], beside: dict[str, bytes]
) -> list[html.Picture]:
    charts = []
    if (figure := sweep.over_values(ranked)) is not None:
        head = ranked[0][1].name
        charts.append(
            _drawn("values", figure, f"{head} over each swept value; the line joins the best of each", beside)
        )
    if len(swept) > 1 and (pair := sweep.front(swept)) is not None:
        charts.append(_drawn("sweep", *pair, beside))
    return charts


def _drawn(name: str, figure: Figure, text: str, beside: dict[str, bytes]) -> html.Picture:
    for form in ("png", "svg"):
        beside[f"{name}.{form}"] = rendered(figure, form)
    return _on_page(name, figure, text)


def _on_page(name: str, figure: Figure, text: str) -> html.Picture:
    return html.picture(html.for_dark_pages(rendered(figure, "svg", on_page=True)), ".svg", name, text)


def _pictures(inputs: Sequence[Input], beside: dict[str, bytes], without_samples: bool) -> list[html.Picture]:
    """The pictures the steps asked to show, also kept beside the page."""
    figures: list[html.Picture] = []
    for place, item in enumerate(inputs):
        manifest = Manifest.read(item.folder)
        for name in manifest.shown if manifest else ():
            source = Path(item.files) / name
            suffix = source.suffix.lower()
            if suffix not in html.MEDIA or not source.is_file() or len(figures) >= MAX_PICTURES:
                continue
            beside[f"{place:02d}-{item.name}-{source.name}".replace("/", "_")] = source.read_bytes()
            if not (without_samples and item.kind == "samples" and source.stem == "grid"):
                figures.append(html.picture(source.read_bytes(), suffix, source.stem, caption(item, name)))
    return figures


def _curves(inputs: Sequence[Input], beside: dict[str, bytes]) -> list[tuple[str, list[html.Picture]]]:
    """Training curves of tokenizers and models: a picture a panel in the page, all together as files."""
    sections = []
    for kind in ("tokenizer", "model"):
        runs = {numbers.label_of(i): _results(read_points(i.folder)) for i in inputs if i.kind == kind}
        arranged, titles = panels(runs), TITLES[kind]
        if (figure := curve_figure(arranged, titles=titles)) is None:
            continue
        for form in ("png", "svg"):
            beside[f"curves_{kind}.{form}"] = rendered(figure, form)
        drawn = {name: curve_figure({name: lines}, titles=titles) for name, lines in arranged.items()}
        heading = "the tokenizer" if kind == "tokenizer" else "the transformer"
        pictures = [_on_page(name, one, "") for name, one in drawn.items() if one is not None]
        sections.append((f"Training of {heading}.", pictures))
    return sections


def _results(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if not any(word in p.metric for word in NOT_RESULTS)]


def _provenance(inputs: Sequence[Input]) -> list[list[str]]:
    rows = []
    for item in inputs:
        record, manifest = Record.read(item.folder), Manifest.read(item.folder)
        packages = record.packages if record else {}
        versions = ", ".join(f"{n} {packages[n]}" for n in ("torch", "numpy") if n in packages)
        digest = manifest.digest[:12] if manifest else ""
        commit = commit_of(record) if record else ""
        rows.append([numbers.label_of(item), item.fingerprint[:12], digest, commit, versions])
    return rows
