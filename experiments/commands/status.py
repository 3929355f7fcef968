"""`maskgit status`: every step's state, from files; the queue is only a hint."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.console import coloured, duration, number, table

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
    from experiments.find import default_store, latest_records

    store = args.store.expanduser().absolute() if args.store else default_store()
    while True:
        records = latest_records(store, args.experiment)
        rows = [(record, rows_of(record, store)) for record in records]
        if args.json:
            print(json.dumps([{"experiment": r["experiment"], "uid": r["uid"], "steps": s} for r, s in rows], indent=2))
        else:
            _print(rows, store)
        if args.usage:
            from experiments.usage_report import report

            print("\n".join(report(steps) for _, steps in rows))
        busy = any(row["state"] in ("running", "queued") for _, steps in rows for row in steps)
        if not args.watch or not busy:
            return 0
        time.sleep(2)
        print()


def rows_of(record: dict[str, Any], store: Path) -> list[dict[str, Any]]:
    """Every step of an execution with its state as it is now."""
    from experiments.queue_hint import job_alive, queued_steps

    alive = job_alive()
    queued = queued_steps({entry["fingerprint"]: store / entry["folder"] for entry in record["steps"]})
    states: dict[str, str] = {}
    rows = []
    for entry in record["steps"]:
        row = row_of(entry, store, alive, queued, states)
        states[entry["fingerprint"]] = row["state"]
        rows.append(row)
    return rows


def row_of(entry: dict[str, Any], store: Path, alive: Any, queued: Any, states: dict[str, str]) -> dict[str, Any]:
    """One step's state: from its files first, then the queue, then what it waits for."""
    from experiments.artifacts import status
    from experiments.atomic import read_json
    from experiments.queue_hint import running_tasks

    folder = store / entry["folder"]
    found = status(folder, alive)
    state, job = str(found.state), found.owner.job if found.owner else None
    reason = str(found.end.get("reason") or "")
    waiting = queued.get(entry["fingerprint"])
    if waiting is not None and (state not in ("done", "running") or (state == "running" and waiting.waits_again)):
        job, reason, state = waiting.job, waiting.reason, "queued"
        if (told := running_tasks(folder)) is not None:
            reason, state = told, "running"
    blockers = [n for n in entry["needs"] if states.get(n) in ("failed", "killed", "cancelled", "blocked", "stopped")]
    if state in ("waiting", "absent"):
        state = "blocked" if blockers else "waiting"
        reason = "something it needs did not finish" if blockers else reason
    if state == "killed" or (state == "waiting" and waiting is None):
        state, reason, job = ended_outside(folder, store, state, reason, job)
    manifest = found.manifest or {}
    seconds = manifest.get("seconds")
    if state == "running" and found.start.get("time"):
        seconds = time.time() - found.start["time"]
    progress = read_json(folder / "attempts" / f"{found.attempt:04d}" / "progress.json") if state == "running" else None
    return {
        "name": entry["name"],
        "stage": entry["stage"],
        "state": state,
        "job": job,
        "owner": found.owner.where() if found.owner and state == "running" else None,
        "attempt": found.attempt,
        "seconds": seconds,
        "headline": manifest.get("headline"),
        "reason": reason if state != "done" else "",
        "progress": progress,
        "folder": str(folder),
        "fingerprint": entry["fingerprint"],
        "params": entry.get("params", {}),
    }


def ended_outside(folder: Path, store: Path, state: str, reason: str, job: str | None) -> tuple[str, str, str | None]:
    """What is known of a step that left the queue without a word of its own: state, reason, job."""
    from experiments import queue_hint
    from experiments.atomic import read_json
    from experiments.failing import exit_note

    note = exit_note(folder, store)
    submitted = queue_hint.submitted(folder)
    if note is not None and note["code"] not in (0, 75):
        refused = (read_json(folder / "refused.json") or {}).get("reason")
        told = refused if refused and state == "waiting" else note["message"]
        if state == "waiting" and note["code"] in (130, 143):
            return "stopped", "asked to end before it began", str(note["job"])
        return ("failed" if state == "waiting" else state), str(told), str(note["job"])
    if submitted is not None and state == "waiting" and queue_hint.has_queue() and queue_hint.queue().all() is not None:
        gone = str(submitted["links"][-1])
        return "killed", f"job {gone} left the queue before the step began; see slurm/{submitted['pipeline']}", gone
    return state, reason, job


def _print(rows: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], store: Path) -> None:
    if not rows:
        print(f"nothing has been run in {store}")
    for record, steps in rows:
        print(coloured(f"{record['experiment']}  ({record['uid']}, {record['user']})", "bold"))
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
