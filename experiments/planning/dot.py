"""The DAG of a plan in Graphviz' language."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from experiments.planning.plan import PlannedStep

_FILL = {"done": "palegreen", "running": "lightblue", "queued": "lightblue", "run": "khaki", "check": "lightgrey"}


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
