"""`maskgit cancel`: ends steps and keeps them from coming back."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands._request import on_arguments

if TYPE_CHECKING:
    from experiments.monitoring.selection import StepNow

HELP = "end steps, waiting or running; they stay cancelled until you run them again"
EPILOG = """\
examples:
  maskgit cancel quickstart                 everything of this experiment that has not ended
  maskgit cancel quickstart/train           one step
  maskgit cancel quickstart/3               the third row of `maskgit status quickstart`
  maskgit cancel 20261122-164832-4a876354   one run
what another live pipeline needs is left alone and listed (--force ends it all the same);
other people's jobs are shown, never touched
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Names, `--force`, `--on`, `--store`."""
    parser.add_argument("what", nargs="+", help="experiment, run uid, experiment/step, experiment/row, step")
    parser.add_argument("--force", action="store_true", help="also what another live pipeline needs")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Marks the steps, takes their jobs out of the queue, and lists what was left alone."""
    from experiments.launching.submission import submission_lock
    from experiments.monitoring.selection import look, needed_elsewhere
    from experiments.searching.launch import cancel as cancel_search
    from experiments.searching.report import search_of
    from experiments.store.find import default_store, select
    from experiments.store.records import mark_cancelled

    store = args.store.expanduser().absolute() if args.store else default_store()
    chosen = [select(text, store) for text in args.what]
    entries = {step.fingerprint: step for selection in chosen for step in selection.steps}
    uids = [uid for selection in chosen for uid in selection.uids]
    whole = [uid for selection in chosen for uid in selection.uids if selection.is_whole]
    searches = [folder for uid in whole if (folder := search_of(store, uid)) is not None]
    with submission_lock(store):
        for folder in searches:  # its workers save, and keep their steps: nothing of a trial is marked
            print(*cancel_search(folder), sep="\n")
        mark_cancelled(store, whole)
        live = [step for step in (look(entry, store) for entry in entries.values()) if step.is_live]
        kept = {} if args.force else needed_elsewhere(live, uids, store)
        mine, left = [], []
        for step in live:
            if searches and step.entry is None:
                continue
            if step.user not in (None, getpass.getuser()):
                left.append(f"{step.name}: runs as {step.user}'s {_where(step)}; only they can cancel it")
            elif step.fingerprint in kept:
                left.append(f"{step.name}: {kept[step.fingerprint]} needs it; --force cancels it all the same")
            else:
                mine.append(step)
        left += _cancel(mine)
    for step in mine:
        print(f"cancelled {step.name} ({_where(step)})")
    for line in left:
        print(f"left alone {line}")
    if not live and not searches:
        print("nothing to cancel: no step of this is running or queued")
    return 0


def _where(step: StepNow) -> str:
    if step.entry is not None:
        return f"job {step.entry.job}"
    return step.status.owner.where() if step.status.owner is not None else "not started"


def _cancel(steps: Sequence[StepNow]) -> list[str]:
    """Marks first, so that nothing that is requeued in this moment comes back; then ends. Returns remarks."""
    from experiments.monitoring import queue
    from experiments.store.step_folder import status
    from maskgit_core.files import write_json

    remarks: list[str] = []
    links: list[str] = []
    for step in steps:
        write_json(step.folder / "cancelled", {"user": getpass.getuser()})
        note = queue.submitted(step.folder)
        if step.entry is None:
            _end_process(step)
        elif note is not None and note.packed:
            remarks.append(f"the job of {step.name}: it runs other steps too; the cancelled one is passed over")
        else:
            links += [*note.links, *note.tasks] if note else [step.entry.job]
    if links:
        from launchers.cluster.queue import call_tool

        call_tool(["scancel", *sorted(set(links))])
    for step in steps:
        if status(step.folder).state == "done":  # it had just finished
            (step.folder / "cancelled").unlink(missing_ok=True)
    return remarks


def _end_process(step: StepNow) -> None:
    owner = step.status.owner
    if owner is not None and owner.job is None and owner.host == socket.gethostname():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(owner.pid, signal.SIGTERM)
