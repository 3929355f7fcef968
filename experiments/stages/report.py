"""One page about a pipeline: pictures, curves, scores with their protocols, config and provenance.

The page is self-contained (pictures inlined, no script, nothing loaded) and says only what follows from its inputs, so
the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from experiments import html
from experiments.atomic import read_json
from experiments.attempt import Attempt
from experiments.journal import Point, read_points
from experiments.plots import curve_figure, panels, rendered
from experiments.schema import Input
from maskgit_core.hints import Kind

VERSION = 1
PRODUCES = "report"
#: Measured speed and waiting say how it ran, not what came out; the window shows them.
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
    body = [
        html.tag("h1", title),
        _scores([*tokenizer_scores, *scores]),
        _pictures(attempt, everything),
        _curves(attempt, [*tokenizers, *models]),
        _protocols([*tokenizer_scores, *scores]),
        _configs(everything),
        _provenance(everything),
    ]
    page = html.page(title, *body)
    attempt.publish(attempt.files / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    attempt.show(attempt.files / "report.html")


# -- sections ---------------------------------------------------------------------------------------------------------
def _scores(inputs: Sequence[Input]) -> html.Markup | None:
    """Every number with the step it comes from and the protocol it was measured under."""
    rows = []
    for item in inputs:
        for name, value in _numbers(item):
            rows.append([_label(item), name, f"{value:.5g}", _protocol_name(item)])
    if not rows:
        return None
    note = html.tag("p", "Numbers are comparable where their protocols are the same.", class_="note")
    return html.join(html.tag("h2", "Scores"), html.table(["step", "score", "value", "protocol"], rows, [2]), note)


def _pictures(attempt: Attempt, inputs: Sequence[Input]) -> html.Markup | None:
    """The pictures the steps asked to show, copied beside the page and inlined in it."""
    figures = []
    for number, item in enumerate(inputs):
        for name in _manifest(item).get("shown") or ():
            source = item.files / name
            if source.suffix.lower() not in html.MEDIA or not source.is_file():
                continue
            copy = attempt.files / f"{number:02d}-{item.name}-{source.name}".replace("/", "_")
            attempt.publish(copy, partial(shutil.copyfile, source))
            if source.suffix.lower() == ".png":
                attempt.show(copy)
            figures.append(html.picture_file(source, _caption(item, source.name)))
    return html.join(html.tag("h2", "Pictures"), figures) if figures else None


def _caption(item: Input, name: str) -> str:
    classes = item.facts.get("class_names")
    rows = f"; rows: {', '.join(map(str, classes))}" if classes and "grid" in name and item.kind == "samples" else ""
    return f"{_label(item)}: {name}{rows}"


def _curves(attempt: Attempt, inputs: Sequence[Input]) -> html.Markup | None:
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
    return html.join(html.tag("h2", "Curves"), figures) if figures else None


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _results(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if not any(word in p.metric for word in NOT_RESULTS)]


def _protocols(inputs: Sequence[Input]) -> html.Markup | None:
    found = []
    for item in inputs:
        protocol = _protocol(item)
        if protocol:
            found += [html.tag("h3", f"{_label(item)}: {_protocol_name(item)}"), html.definitions(_flat(protocol))]
    return html.join(html.tag("h2", "Protocols"), found) if found else None


def _configs(inputs: Sequence[Input]) -> html.Markup | None:
    shown = [
        html.folded(_label(i), html.tag("pre", json.dumps(dict(i.config), indent=2, sort_keys=True))) for i in inputs
    ]
    return html.join(html.tag("h2", "Config"), shown) if shown else None


def _provenance(inputs: Sequence[Input]) -> html.Markup | None:
    rows = []
    for item in inputs:
        record = read_json(item.folder / "record.json") or {}
        code, packages = record.get("code") or {}, record.get("packages") or {}
        commit = str(code.get("commit") or "")[:12] + (" + changes" if code.get("dirty") else "")
        versions = ", ".join(f"{n} {packages[n]}" for n in ("torch", "numpy") if n in packages)
        digest = str(_manifest(item).get("digest", ""))[:12]
        rows.append([_label(item), item.fingerprint[:12], digest, commit, versions])
    header = ["step", "fingerprint", "outputs", "commit", "packages"]
    return html.join(html.tag("h2", "Provenance"), html.table(header, rows)) if rows else None


# -- reading an input -------------------------------------------------------------------------------------------------
def _label(item: Input) -> str:
    values = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in item.params.items())
    return f"{item.name} [{values}]" if values else item.name


def _manifest(item: Input) -> Mapping[str, Any]:
    return read_json(item.folder / "manifest.json") or {}


def _scores_file(item: Input) -> Mapping[str, Any]:
    found = read_json(Path(item.files) / "scores.json")
    return found if isinstance(found, Mapping) else {}


def _numbers(item: Input) -> Iterator[tuple[str, float]]:
    """The headline first, then every other number of `scores.json`."""
    headline = _manifest(item).get("headline") or {}
    if headline:
        yield str(headline["name"]), float(headline["value"])
    written = _scores_file(item)
    for name, value in _flat(written.get("metrics", {})).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != headline.get("name"):
            yield name, float(value)


def _protocol(item: Input) -> Mapping[str, Any]:
    stated = _scores_file(item).get("protocol") or (_manifest(item).get("headline") or {}).get("protocol") or {}
    return stated if isinstance(stated, Mapping) else {"name": stated}


def _protocol_name(item: Input) -> str:
    return str(_protocol(item).get("name", ""))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = inner
    return found
