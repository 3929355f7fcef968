"""`maskgit status`: every step's state, from files; the queue is only a hint."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.commands._request import on_arguments
from experiments.console import coloured, duration, number, table
from experiments.monitoring.status import rows_of
from experiments.store.records import PipelineRecord, latest_records
from experiments.store.typed_json import Block

HELP = "every step: state, job, time, headline number"
EPILOG = """\
examples:
  maskgit status                     the newest run of every experiment in the store
  maskgit status quickstart          one experiment
  maskgit status --watch             again every two seconds
  maskgit status --json              for scripts
  maskgit status quickstart --html dag.html --watch   a page with the DAG, curves and pictures, kept up to date
  maskgit status quickstart --usage  what its jobs asked for and what they used
  maskgit status quickstart --on mysite    over ssh, where conf/launcher/mysite.yaml has ssh: me@login
"""
REFRESH_S = 5  # a page that is watched loads itself again
FOLD_ABOVE = 60  # rows
FOLD_KEEPS = 3  # items of one step in one state that are still shown one by one
COLOURS = {
    "done": "green",
    "running": "blue",
    "queued": "blue",
    "failed": "red",
    "killed": "red",
    "damaged": "red",
    "cancelled": "yellow",
    "blocked": "yellow",
    "stopped": "yellow",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Experiment, `--watch`, `--all`, `--json`, `--html`, `--usage`, `--on`, `--store`."""
    parser.add_argument("experiment", nargs="?", help="an experiment's name or a run's uid")
    parser.add_argument("--watch", action="store_true", help="repeat every two seconds until everything has ended")
    parser.add_argument("--all", action="store_true", help="every row, also of large sweeps")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page of the DAG; -: print it")
    parser.add_argument("--usage", action="store_true", help="time, CPU and memory used against asked for (SLURM)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the table, once or until everything has ended."""
    try:
        return _show(args)
    except KeyboardInterrupt:
        if args.watch:  # the usual end of watching
            return 0
        raise


def _show(args: argparse.Namespace) -> int:
    from experiments.monitoring.queue import is_silent
    from experiments.store.find import default_store

    store = args.store.expanduser().absolute() if args.store else default_store()
    before, warned = "", set[str]()

    def warn(text: str) -> None:
        if text not in warned:
            print(f"warning: {text}", file=sys.stderr)
        warned.add(text)

    while True:
        rows = [(record, rows_of(record, store)) for record in latest_records(store, args.experiment, warn)]
        busy = any(goes_on(record, steps) for record, steps in rows)
        if args.html == Path("-"):
            print(_page(rows, store, None))
            return 0
        if args.html:
            _write_page(args.html, rows, store, REFRESH_S if args.watch and busy else None)
        if args.json:
            executions = [{"experiment": r.experiment, "uid": r.uid, "steps": s} for r, s in rows]
            text = json.dumps(executions, indent=2)
        else:
            text = "\n".join(_lines(rows, store, args.all))
            text += "\nsqueue does not answer: states are from files alone" if is_silent() else ""
        if args.usage:
            from experiments.monitoring.usage import report

            text += "\n" + "\n".join(report(steps) for _, steps in rows)
        if args.watch and sys.stdout.isatty():
            text = _screenful(text) if busy else f"\033[H\033[J{text}"
        if text != before:
            print(text, flush=True)
        before = text
        if not args.watch or not busy:
            return 0
        time.sleep(2)


def goes_on(record: PipelineRecord, steps: Sequence[Block]) -> bool:
    """True while a step runs or is queued, or waits for its turn in a launch whose process lives."""
    from experiments.store.claims import is_alive

    states = {row["state"] for row in steps}
    if states & {"running", "queued"}:
        return True
    if "waiting" not in states or record.launcher == "slurm" or record.owner is None:
        return False
    return is_alive(record.owner) is True


def _screenful(text: str) -> str:
    """The table over the one before, from the top of the screen: as many lines as there are, none wrapped."""
    rows, lines = shutil.get_terminal_size().lines, text.splitlines()
    if len(lines) >= rows:
        left = len(lines) - max(rows - 2, 1)
        lines = [*lines[: -left or None], f"... {left} more lines; without --watch all are printed"]
    return "\033[H\033[J\033[?7l" + "\n".join(lines) + "\033[?7h"


def _write_page(
    path: Path, rows: Sequence[tuple[PipelineRecord, list[Block]]], store: Path, refresh_s: int | None
) -> None:
    from maskgit_core.files import write_bytes

    write_bytes(path.expanduser().absolute(), _page(rows, store, refresh_s).encode(), durable=False)


def _page(rows: Sequence[tuple[PipelineRecord, list[Block]]], store: Path, refresh_s: int | None) -> str:
    """The page of the one execution that was asked for.

    Raises:
        ConfigError: several experiments; names them.
    """
    from experiments.results.dag_page import page
    from maskgit_core.errors import ConfigError

    if len(rows) != 1:
        names = ", ".join(record.experiment for record, _ in rows) or f"none has been run in {store}"
        raise ConfigError(f"--html: a page shows one experiment; name one of [{names}]")
    return page(rows[0][0], rows[0][1], store, refresh_s)


def _lines(rows: Sequence[tuple[PipelineRecord, list[Block]]], store: Path, every_row: bool = False) -> Iterator[str]:
    if not rows:
        yield f"nothing has been run in {store}"
    for record, steps in rows:
        yield coloured(f"{record.experiment}  ({record.uid}, {record.user})", "bold")
        numbered = [{**step, "row": str(number)} for number, step in enumerate(steps, 1)]
        shown = numbered if every_row else folded(numbered)
        cells = [
            [s["row"], s["name"], s["state"], s["job"] or "", duration(s["seconds"]), _headline(s), _detail(s)]
            for s in shown
        ]
        head = ["", "step", "state", "job", "time", "result", "progress or reason"]
        yield table([head, *cells], ["dim", *(COLOURS.get(s["state"]) for s in shown)])
        counts = Counter(str(step["state"]) for step in steps)
        total = ", ".join(f"{count} {state}" for state, count in counts.most_common())
        more = "; --all shows every row" if len(shown) < len(steps) else ""
        yield f"  {len(steps)} {'step' if len(steps) == 1 else 'steps'}: {total}{more}"


def folded(steps: Sequence[Block]) -> list[Block]:
    """The rows of a large sweep with those folded into one that are items of one step in the same state."""
    if len(steps) <= FOLD_ABOVE:
        return list(steps)
    groups: dict[tuple[str, str, str], list[Block]] = {}
    for step in steps:
        reason = str(step["reason"]) if step["state"] in ("failed", "killed") else ""
        groups.setdefault((str(step["name"]).partition("[")[0], str(step["state"]), reason), []).append(step)
    shown = []
    for (name, state, _), members in groups.items():
        if len(members) <= FOLD_KEEPS:
            shown += members
            continue
        seconds = [member["seconds"] for member in members if member["seconds"] is not None]
        shown.append(
            {
                **members[0],
                "row": "",
                "name": f"{name} x {len(members)}",
                "job": None,
                "seconds": sum(seconds) / len(seconds) if seconds else None,
                "headline": None,
                "progress": None,
                "reason": members[0]["reason"] if state not in ("running", "done") else "mean time" if seconds else "",
            }
        )
    return shown


def _headline(row: Block) -> str:
    head = row["headline"]
    return f"{head['name']} {number(head['value'])}" if head else ""


def _detail(row: Block) -> str:
    progress = row["progress"]
    if progress and progress.get("total"):
        rate = progress["rate"] or 0
        left = (progress["total"] - progress["done"]) / rate if rate else None
        eta = f", {duration(left)} left" if left is not None else ""
        return f"{progress['done']}/{progress['total']} {progress['unit']}s, {rate:.3g}/s{eta}"
    return " ".join(str(row["reason"]).split())[:100]
