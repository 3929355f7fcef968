"""`maskgit failures`: what went wrong, equal failures together."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands._request import on_arguments
from experiments.console import coloured

if TYPE_CHECKING:
    from experiments.monitoring.failures import Failure

HELP = "failed steps, grouped by reason, last line and node"
#: Reasons that may lie with the node; an error of the step's own, a time limit or a preemption does not.
BY_NODE = ("node failure", "killed", "job script", "out of memory")
EPILOG = """\
examples:
  maskgit failures                   of the newest run of every experiment
  maskgit failures quickstart
  maskgit failures --nodes           the nodes that may be the reason, as launcher.exclude takes them
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Experiment, `--nodes`, `--json`, `--on`, `--store`."""
    parser.add_argument("experiment", nargs="?", help="an experiment's name or a run's uid")
    parser.add_argument(
        "--nodes", action="store_true", help="print only the nodes that may be the reason, comma-separated"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the groups, the largest first."""
    from experiments.monitoring.failures import failures, grouped
    from experiments.store.find import default_store
    from experiments.store.records import latest_records

    store = args.store.expanduser().absolute() if args.store else default_store()

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    failed = [f for record in latest_records(store, args.experiment, warn) for f in failures(record, store)]
    if args.nodes:
        print(",".join(sorted({f.node for f in failed if f.node and f.reason in BY_NODE})))
        return 0
    groups = grouped(failed)
    if args.json:
        print(json.dumps([{"reason": r, "line": line, "steps": [vars(f) for f in g]} for (r, line), g in groups]))
        return 0
    for (reason, line), members in groups:
        _print(reason, line, members)
    if not groups:
        print("no failures")
    return 0


def _print(reason: str, line: str, members: list[Failure]) -> None:
    print(coloured(f"{len(members)} x {reason}: {line}", "red"))
    nodes: dict[str, int] = {}
    for member in members:
        nodes[member.node or "?"] = nodes.get(member.node or "?", 0) + 1
    for member in members[:10]:
        job = f"  job {member.job}" if member.job else ""
        print(f"    {member.name}{job}  {member.log or member.folder}")
    if len(members) > 10:
        print(f"    ... and {len(members) - 10} more")
    print("    on " + ", ".join(f"{node} ({count})" for node, count in sorted(nodes.items())))
