"""`maskgit status`: every step's state, from files; the queue is only a hint."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.console import coloured, duration, number, table
from experiments.monitoring.status import rows_of
from experiments.store.records import PipelineRecord, latest_records

HELP = "every step: state, job, time, headline number"
EPILOG = """\
examples:
  maskgit status                     the newest run of every experiment in the store
  maskgit status quickstart          one experiment
  maskgit status --watch             again every two seconds
  maskgit status --json              for scripts
  maskgit status quickstart --usage  what its jobs asked for and what they used
"""
COLOURS = {
    "done": "green",
    "running": "blue",
    "queued": "blue",
    "failed": "red",
    "killed": "red",
    "cancelled": "yellow",
    "blocked": "yellow",
    "stopped": "yellow",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Experiment, `--watch`, `--json`, `--store`."""
    parser.add_argument("experiment", nargs="?", help="an experiment's name or a run's uid")
    parser.add_argument("--watch", action="store_true", help="repeat every two seconds until everything has ended")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--usage", action="store_true", help="time, CPU and memory used against asked for (SLURM)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Prints the table, once or repeatedly."""
    from experiments.store.find import default_store

    store = args.store.expanduser().absolute() if args.store else default_store()
    while True:
        records = latest_records(store, args.experiment)
        rows = [(record, rows_of(record, store)) for record in records]
        if args.json:
            print(json.dumps([{"experiment": r.experiment, "uid": r.uid, "steps": s} for r, s in rows], indent=2))
        else:
            _print(rows, store)
        if args.usage:
            from experiments.monitoring.usage import report

            print("\n".join(report(steps) for _, steps in rows))
        busy = any(row["state"] in ("running", "queued") for _, steps in rows for row in steps)
        if not args.watch or not busy:
            return 0
        time.sleep(2)
        print()


def _print(rows: Sequence[tuple[PipelineRecord, list[dict[str, Any]]]], store: Path) -> None:
    if not rows:
        print(f"nothing has been run in {store}")
    for record, steps in rows:
        print(coloured(f"{record.experiment}  ({record.uid}, {record.user})", "bold"))
        shown = [
            [s["name"], s["state"], s["job"] or "", duration(s["seconds"]), _headline(s), _detail(s)] for s in steps
        ]
        print(table(shown, [COLOURS.get(s["state"]) for s in steps]))


def _headline(row: dict[str, Any]) -> str:
    head = row["headline"]
    return f"{head['name']} {number(head['value'])}" if head else ""


def _detail(row: dict[str, Any]) -> str:
    progress = row["progress"]
    if progress and progress.get("total"):
        rate = progress["rate"] or 0
        left = (progress["total"] - progress["done"]) / rate if rate else None
        eta = f", {duration(left)} left" if left is not None else ""
        return f"{progress['done']}/{progress['total']} {progress['unit']}s, {rate:.3g}/s{eta}"
    return " ".join(str(row["reason"]).split())[:100]
