"""One page about a pipeline: pictures, curves, scores with their protocols, config and provenance.

The page is self-contained (pictures inlined, no script) and contains only what follows from its inputs, so
the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from experiments.config.specs import Input
from experiments.results import html
from experiments.results.plots import Mark, curve_figure, panels, pareto_front, rendered, scatter_figure
from experiments.running.attempt import Attempt
from experiments.store.code_digests import unlike_code
from experiments.store.documents import Code, Manifest, Record
from experiments.store.journal import Point, read_points
from experiments.store.scores import Score, describe_metric, read_scores
from maskgit_core.hints import Kind

VERSION = 1
PRODUCES = "report"
#: Measured speed and waiting say how it ran, not what came out; MLflow shows them.
NOT_RESULTS = ("seconds", "per_s", "time", "wait", "memory", "throughput")


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
    """Writes `report.html`, `curves.png`, `curves.svg` and copies of the pictures.

    Args:
        scores, tokenizer_scores, samples, models, tokenizers: whatever the pipeline has; each may be empty.
        title: the page's heading.
    """
    pictured = [*tokenizers, *tokenizer_scores, *samples, *models, *scores]
    everything = list({i.fingerprint: i for i in pictured}.values())
    measured = [*tokenizer_scores, *scores]
    page = html.render(
        "report",
        title=title,
        scores=_scores(measured) if len(scores) < 2 else _sweep(attempt, scores),
        pictures=_pictures(attempt, everything),
        curves=_curves(attempt, [*tokenizers, *models]),
        protocols=_protocols(measured),
        configs=[(_label(i), json.dumps(dict(i.config), indent=2, sort_keys=True)) for i in everything],
        provenance=_provenance(everything),
    )
    attempt.publish(attempt.files / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    attempt.show(attempt.files / "report.html")


# -- sections ---------------------------------------------------------------------------------------------------------
def _scores(inputs: Sequence[Input]) -> dict[str, Any] | None:
    """Every number with the step it comes from and the protocol it was measured under."""
    rows = []
    for item in inputs:
        for score in _read(item):
            count = "" if score.num_images is None else str(score.num_images)
            rows.append([_label(item), score.name, score.of, f"{score.value:.5g}", count, score.protocol])
    if not rows:
        return None
    header = ["step", "score", "of", "value", "images", "protocol"]
    note = "Comparable are numbers of one protocol over equally many images." + _other_code(inputs)
    return {"header": header, "rows": rows, "numbers": [3, 4], "note": note, "front": None}


def _sweep(attempt: Attempt, inputs: Sequence[Input]) -> dict[str, Any]:
    """A row per item, a column per score; a chart of the headline over another score that varies, with its front."""
    read = {item.fingerprint: _read(item) for item in inputs}
    # Scores of unlike protocols get columns of their own.
    columns = {s.comparable: s for scores in read.values() for s in scores}
    rows = []
    for item in inputs:
        values = {s.comparable: f"{s.value:.5g}" for s in read[item.fingerprint]}
        rows.append([_label(item), *(values.get(c, "—") for c in columns)])
    header = ["", *(f"{s.key} ({s.num_images} images)" for s in columns.values())]
    varying = [c for c in columns if len({r[1 + i] for i, c2 in enumerate(columns) for r in rows if c2 == c}) > 1]
    front = _front(attempt, inputs, read, columns[varying[1]], columns[varying[0]]) if len(varying) > 1 else None
    return {"header": header, "rows": rows, "numbers": range(1, len(header)), "note": _other_code(inputs) or None,
            "front": front}  # fmt: skip


def _other_code(inputs: Sequence[Input]) -> str:
    """A sentence where scores were made by different code; empty where all were made by the same."""
    records = (Record.read(item.folder) for item in inputs)
    changed = unlike_code(record.science_files for record in records if record is not None)
    return f" Not comparable: made by different code ({', '.join(changed[:4])})." if changed else ""


def _front(
    attempt: Attempt, inputs: Sequence[Input], read: Mapping[str, list[Score]], x: Score, y: Score
) -> html.Picture:
    """`sweep.png` and `sweep.svg`: score `y` over score `x`, one line per value of the sweep's first parameter."""
    groups: dict[str, list[Mark]] = {}
    for item in inputs:
        values = {s.comparable: s.value for s in read[item.fingerprint]}
        if x.comparable in values and y.comparable in values:
            parts = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in item.params.items()]
            mark = Mark(", ".join(parts[1:]), values[x.comparable], values[y.comparable])
            groups.setdefault(", ".join(parts[:1]), []).append(mark)
    lower = [bool((describe_metric(s.name) or ("", True))[1]) for s in (x, y)]
    front = pareto_front([m for g in groups.values() for m in g], lower_x=lower[0], lower_y=lower[1])
    figure = scatter_figure(groups, x.key, y.key, front)
    for form in ("png", "svg"):
        path = attempt.files / f"sweep.{form}"
        attempt.publish(path, partial(_write, rendered(figure, form)))
        attempt.show(path)
    return html.picture(rendered(figure, "svg"), ".svg", "sweep", f"{y.key} over {x.key}; dashed: the Pareto front")


def _pictures(attempt: Attempt, inputs: Sequence[Input]) -> list[html.Picture]:
    """The pictures the steps asked to show, copied beside the page and inlined in it."""
    figures = []
    for number, item in enumerate(inputs):
        manifest = Manifest.read(item.folder)
        for name in manifest.shown if manifest else ():
            source = item.files / name
            if source.suffix.lower() not in html.MEDIA or not source.is_file():
                continue
            copy = attempt.files / f"{number:02d}-{item.name}-{source.name}".replace("/", "_")
            attempt.publish(copy, partial(shutil.copyfile, source))
            if source.suffix.lower() == ".png":
                attempt.show(copy)
            data, suffix = source.read_bytes(), source.suffix.lower()
            figures.append(html.picture(data, suffix, source.stem, _caption(item, source.name)))
    return figures


def _caption(item: Input, name: str) -> str:
    classes = item.facts.get("class_names")
    rows = f"; rows: {', '.join(map(str, classes))}" if classes and "grid" in name and item.kind == "samples" else ""
    return f"{_label(item)}: {name}{rows}"


def _curves(attempt: Attempt, inputs: Sequence[Input]) -> list[html.Picture]:
    """Training curves of tokenizers and models, as a picture in the page and as files."""
    figures = []
    for kind in ("tokenizer", "model"):
        runs = {_label(i): _results(read_points(i.folder)) for i in inputs if i.kind == kind}
        figure = curve_figure(panels(runs))
        if figure is None:
            continue
        for form in ("png", "svg"):
            data, path = rendered(figure, form), attempt.files / f"curves_{kind}.{form}"
            attempt.publish(path, partial(_write, data))
            attempt.show(path)
        figures.append(html.picture(rendered(figure, "svg"), ".svg", f"curves of the {kind}", f"{kind}"))
    return figures


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _results(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if not any(word in p.metric for word in NOT_RESULTS)]


def _protocols(inputs: Sequence[Input]) -> dict[str, list[tuple[str, Any]]]:
    """Heading of a score -> the settings it was measured under."""
    settings: dict[str, list[tuple[str, Any]]] = {}
    for item in inputs:
        for score in _read(item):
            shown = _flat(score.details)
            if shown:
                heading = f"{_label(item)}: {score.name} of {score.of}: {score.protocol}"
                settings.setdefault(heading, list(shown.items()))
    return settings


def _provenance(inputs: Sequence[Input]) -> list[list[str]]:
    rows = []
    for item in inputs:
        record, manifest = Record.read(item.folder), Manifest.read(item.folder)
        code, packages = (record.code, record.packages) if record else (Code(), {})
        commit = (code.commit or "")[:12] + (" + changes" if code.dirty else "")
        versions = ", ".join(f"{n} {packages[n]}" for n in ("torch", "numpy") if n in packages)
        digest = manifest.digest[:12] if manifest else ""
        rows.append([_label(item), item.fingerprint[:12], digest, commit, versions])
    return rows


# -- reading an input -------------------------------------------------------------------------------------------------
def _label(item: Input) -> str:
    values = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in item.params.items())
    return f"{item.name} [{values}]" if values else item.name


def _read(item: Input) -> list[Score]:
    manifest = Manifest.read(item.folder)
    return read_scores(Path(item.files), manifest.headline if manifest else None)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = inner
    return found
