"""The plan as a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.console import coloured, table
from experiments.planning.plan import PlannedStep, summary

COLOURS = {"done": "green", "running": "blue", "queued": "blue", "run": "yellow", "check": "dim"}


def print_plan(planned: Sequence[PlannedStep], *, limit: int = 60) -> None:
    """One line a step: what will happen and why; then warnings and the count."""
    shown = list(planned)
    if len(shown) > limit:
        shown = [s for s in shown if s.action != "done"][:limit] or shown[:limit]
    rows = [[s.node.name, "to run" if s.action == "run" else s.action, s.reason] for s in shown]
    print(table(rows, [COLOURS[s.action] for s in shown]))
    if len(shown) < len(planned):
        print(f"  ... and {len(planned) - len(shown)} more steps")
    for warning in dict.fromkeys(w for s in planned for w in s.warnings):
        print(coloured(f"  warning: {warning}", "yellow"))
    counts = summary(list(planned))
    words = {"run": "to run", "check": "to check"}
    print(f"{len(planned)} steps: " + ", ".join(f"{n} {words.get(a, a)}" for a, n in counts.items()))
