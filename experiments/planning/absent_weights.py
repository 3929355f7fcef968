"""Marks the steps of a plan whose published weights are not on this machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from experiments.console import size
from experiments.planning.plan import PlannedStep
from maskgit_core.weights.download import missing
from maskgit_core.weights.registry import registry


def with_absent_weights(planned: Sequence[PlannedStep], absent: Collection[str]) -> list[PlannedStep]:
    """The plan with `needs weights NAME (SIZE; maskgit weights fetch NAME)` as the reason of such steps.

    Args:
        planned: upstream first.
        absent: weights whose digest is unknown: no step that counts them, or needs one that does, is identified.
    """
    unknown: set[str] = set()
    marked = []
    for step in planned:
        names = list(dict.fromkeys(map(str, step.node.request.weights.values())))
        if {*names} & {*absent} or {*step.node.upstream} & unknown:
            unknown.add(step.node.fingerprint)
            step = replace(step, identified=False, reason="never run" if step.action != "done" else step.reason)
        if step.action == "run" and (lacking := missing(names)):
            step = replace(step, reason="; ".join(map(_needs, lacking)))
        marked.append(step)
    return marked


def _needs(name: str) -> str:
    entry = registry()[name]
    return f"needs weights {name} ({f'{size(entry.size)}; ' if entry.size else ''}maskgit weights fetch {name})"
