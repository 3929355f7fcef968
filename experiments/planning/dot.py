"""The DAG of a plan in the languages of Graphviz and mermaid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from experiments.planning.plan import PlannedStep

_FILL = {"done": "palegreen", "running": "lightblue", "queued": "lightblue", "run": "khaki", "check": "lightgrey"}
_MERMAID_FILL = {
    "done": "#98fb98",
    "running": "#add8e6",
    "queued": "#add8e6",
    "run": "#f0e68c",
    "check": "#d3d3d3",
}


def dot(planned: Sequence[PlannedStep]) -> Iterator[str]:
    """Lines of a digraph: a box per step, coloured by what will happen to it, an arrow per input."""
    yield "digraph plan {"
    yield '  rankdir=LR; node [shape=box, style="rounded,filled", fontname="sans-serif"];'
    for step in planned:
        word = "to run" if step.action == "run" else step.action
        label = json.dumps(f"{step.node.name}\n{word}", ensure_ascii=False)
        yield f'  "{step.node.fingerprint[:12]}" [label={label}, fillcolor={_FILL[step.action]}];'
    for step in planned:
        for source in step.node.upstream:
            yield f'  "{source[:12]}" -> "{step.node.fingerprint[:12]}";'
    yield "}"


def mermaid(planned: Sequence[PlannedStep]) -> Iterator[str]:
    """Lines of a flowchart, as Markdown on GitHub and GitLab shows it in a block `mermaid`."""
    yield "flowchart LR"
    for step in planned:
        word = "to run" if step.action == "run" else step.action
        name = step.node.name.replace("#", "#35;").replace('"', "#quot;")
        yield f'  s{step.node.fingerprint[:12]}["{name}<br/>{word}"]:::{step.action}'
    for step in planned:
        for source in step.node.upstream:
            yield f"  s{source[:12]} --> s{step.node.fingerprint[:12]}"
    for action, colour in _MERMAID_FILL.items():
        yield f"  classDef {action} fill:{colour},stroke:#555,color:#000"
