"""The plan as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.console import table
from experiments.planning.plan import PlannedStep, summary

COLOURS = {"done": "green", "running": "blue", "queued": "blue", "run": "yellow", "check": "dim"}


def print_plan(
    planned: Sequence[PlannedStep], *, jobs: Mapping[str, Sequence[str]] | None = None, limit: int = 60
) -> None:
    """Prints `plan_text`."""
    print(plan_text(planned, jobs, limit))


def plan_text(planned: Sequence[PlannedStep], jobs: Mapping[str, Sequence[str]] | None = None, limit: int = 60) -> str:
    """One line per step: what will happen and why; then warnings and the count.

    Args:
        jobs: ids of the jobs just submitted, by fingerprint; None where nothing was.
        limit: of steps shown, finished ones left out first.
    """
    shown = list(planned)
    if len(shown) > limit:
        shown = [s for s in shown if s.action != "done"][:limit] or shown[:limit]
    rows = [_row(step, jobs) for step in shown]
    lines = [table(rows, [COLOURS[s.action] for s in shown])]
    if len(shown) < len(planned):
        lines.append(f"  ... and {len(planned) - len(shown)} more steps")
    warnings = list(dict.fromkeys(w for s in planned for w in s.warnings))
    lines += [table([[f"warning: {warning}"]], ["yellow"]) for warning in warnings]
    counts = summary(list(planned))
    words = {"run": "to run", "check": "to check"}
    lines.append(f"{len(planned)} steps: " + ", ".join(f"{n} {words.get(a, a)}" for a, n in counts.items()))
    return "\n".join(lines)


def _row(step: PlannedStep, jobs: Mapping[str, Sequence[str]] | None) -> list[str]:
    if jobs is None:
        return [step.node.name, "to run" if step.action == "run" else step.action, step.reason]
    ids = ",".join(jobs.get(step.node.fingerprint, ()))
    return [step.node.name, "submitted" if ids else step.action, ids, step.reason]
