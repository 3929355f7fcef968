"""The end of a run: headline numbers beside their floor and ceiling, the report, what to type next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.console import coloured, number
from experiments.launching.telling import refusal
from experiments.planning.graph import Graph
from experiments.store.documents import Manifest
from experiments.store.scores import read_scores
from experiments.store.typed_json import Options
from launchers.calls import Call, Outcome
from maskgit_core.errors import ArtifactError

MAX_RESULTS = 40


def hint(store: Path, experiment: str) -> str | None:
    """A line for the first run in a store: where results go, and how to look and to stop; else None."""
    if any((store / "pipelines").glob("*.json")):  # there is one; none of them needs to be read
        return None
    return (
        f"first run in {shown(store)}: results are kept there; Ctrl-C stops, saved, and the same command goes on; from "
        f"another terminal: maskgit status {experiment}, maskgit logs STEP -f"
    )


def report(todo: Sequence[Call], outcomes: Mapping[str, Outcome]) -> int:
    """Prints headline numbers and what did not end well; returns the exit code.

    Failures were printed when they happened (`telling.print_failure`).
    """
    code, lines = 0, []
    for call in todo:
        outcome = outcomes[call.key]
        if outcome.state == "done" and (line := headline_of(Path(call.args[0]))):
            lines.append(f"  {call.name}: {line}")
        elif outcome.state == "failed":
            refused = refusal(call, outcome) is not None
            code = 2 if refused and code != 1 else 1
        elif outcome.state == "stopped":
            code = code or 130
    if len(lines) > MAX_RESULTS:
        lines = [*lines[:MAX_RESULTS], f"  ... and {len(lines) - MAX_RESULTS} more: maskgit compare shows them"]
    print("\n".join(lines), end="\n" if lines else "")
    blocked = [c.name for c in todo if outcomes[c.key].state == "blocked"]
    if blocked:
        print(f"not run, since something they need failed: {', '.join(blocked)}")
    if code == 130:
        print("stopped; run the same command to go on from what was saved")
    return code


def headline_of(folder: Path) -> str | None:
    """`fid = 6.18 (floor 2.1: real images; ceiling 310: untrained model)`; None where a step has no headline."""
    try:
        manifest = Manifest.read(folder)
    except ArtifactError:  # of a disk that fails, which the failure of a step has told
        return None
    if manifest is None or manifest.headline is None:
        return None
    head = manifest.headline
    scores = {s.key: s for s in read_scores(folder / "files", head)}
    beside = [(word, f"{head.name}/{of}") for word, of in (("floor", "real_images"), ("ceiling", "untrained_model"))]
    placed = [f"{word} {number(scores[key].value)}: {scores[key].of}" for word, key in beside if key in scores]
    accuracy = scores.get("class_accuracy")
    more = f", class_accuracy = {number(accuracy.value)}" if accuracy and head.name != "class_accuracy" else ""
    if more and "class_accuracy/real_images" in scores:
        more += f" (real images: {number(scores['class_accuracy/real_images'].value)})"
    return f"{head.name} = {number(head.value)}" + (f" ({'; '.join(placed)})" if placed else "") + more


def next_commands(graph: Graph, store: Path, failed: Sequence[str] = ()) -> None:
    """Prints where the report is and what one may type next."""
    name, kinds = graph.experiment, [node.request.kind for node in graph.nodes.values()]
    lines: list[tuple[str, str]] = []
    for step, node in ((s, n) for s, nodes in graph.by_step().items() for n in nodes if n.request.kind == "report"):
        link = store / "experiments" / name / step / "files" / "report.html"
        page = link if link.exists() else node.folder / "files" / "report.html"
        if not failed and page.exists():
            lines.append(("report:", shown(page)))
    if not failed and not lines and kinds.count("scores") + kinds.count("tokenizer_scores"):
        lines.append(("report:", f"maskgit report {name}"))
    if failed:
        lines.append(("next:", f"maskgit logs {failed[0]}          all that it printed"))
        lines.append(("", "the same command again     runs what is missing"))
    else:
        uri = (graph.settings.get("tracking") or {}).get("uri")
        lines.append(("next:", f"maskgit ui {name}" if uri is None else f"maskgit status {name}"))
        if kinds.count("scores") + kinds.count("tokenizer_scores") > 1:
            lines.append(("", f"maskgit compare experiment={name}"))
        if key := _key_to_try(graph):
            lines.append(("", f"maskgit plan {name} {key}     what one changed key would run again"))
    print()
    for word, text in lines:
        print(f"{coloured(word, 'bold')}{' ' * (8 - len(word))}{text}")


def _key_to_try(graph: Graph) -> str | None:
    """A key of this experiment with another value, cheap to look at."""
    configs: dict[str, Options] = {node.request.name: node.request.config for node in graph.nodes.values()}
    for config in configs.values():
        sampler = config.get("sampler")
        if isinstance(sampler, Mapping) and isinstance(sampler.get("num_steps"), int):
            return f"sampler.num_steps={sampler['num_steps'] // 2 or 1}"
    return None


def shown(path: Path) -> str:
    """A path as one would type it: relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
