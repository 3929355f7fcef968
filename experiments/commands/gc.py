"""`maskgit gc`: shows (and with `--delete` removes) what no experiment reaches."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from experiments.console import size, table

HELP = "show what no experiment reaches; --delete removes it"
EPILOG = """\
A step is reached while a link in <store>/experiments/ points at it, or a reached step was made from it. Remove an
experiment's folder of links (or single links) to let go of its steps. Running steps and other users' are never touched.
Notes of submissions and frozen code go with the last step that was submitted with them or ran them.
examples:
  maskgit gc                 what would be deleted, and how much it holds
  maskgit gc --delete
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--delete`, `--store`."""
    parser.add_argument("--delete", action="store_true", help="really delete (default: only show)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Lists or deletes unreached steps."""
    from experiments.store.find import default_store
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import Store

    root = args.store.expanduser().absolute() if args.store else default_store()
    store = Store(root)
    reached = reachable(store)
    rows, total = [], 0
    steps = list(store.steps())
    unreached = {folder: _kept(folder) for folder in steps if folder.resolve() not in reached}
    staying = [folder for folder in steps if folder not in unreached or unreached[folder]]
    for folder, reason in [*unreached.items(), *((place, _kept(place)) for place in _unused(root, staying))]:
        held = _held(folder)
        if reason is None:
            total += held
        rows.append([str(folder.relative_to(root)), size(held), f"kept: {reason}" if reason else "unreached"])
        if args.delete and reason is None:
            # The mark goes first, so that a deletion cut short never leaves something that looks finished.
            StepFolder(folder).manifest.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        print("nothing to delete: every step is reached by an experiment")
        return 0
    print(table(rows))
    print(f"{size(total)} " + ("deleted" if args.delete else "would be deleted; add --delete to do it"))
    return 0


def reachable(store: object) -> set[Path]:
    """Folders of all steps that an experiment's links lead to, and of what those were made from."""
    from experiments.store.documents import Request
    from experiments.store.step_folder import Store

    assert isinstance(store, Store)
    todo = [p.resolve() for p in (store.root / "experiments").rglob("*") if p.is_symlink() and p.exists()]
    reached: set[Path] = set()
    while todo:
        folder = todo.pop()
        if folder in reached:
            continue
        reached.add(folder)
        request = Request.read(folder)
        todo += [(store.root / source.folder).resolve() for source in (request.sources if request else ())]
    return reached


def _unused(root: Path, staying: Iterable[Path]) -> list[Path]:
    """Folders of submissions and of frozen code that none of the staying steps was submitted with or ran."""
    from experiments.monitoring.queue import submitted
    from experiments.store.documents import Record

    uids, codes = set(), set()
    for folder in staying:
        submission, record = submitted(folder), Record.read(folder)
        uids.add(submission.pipeline if submission else None)
        codes.add(record.code.digest if record else None)
    submissions = [p for p in sorted((root / "slurm").glob("*")) if p.is_dir()]
    unused = [p for p in submissions if p.name not in uids and not _is_recent(p)]
    scripts = [s.read_text() for p in submissions if p not in unused for s in p.glob("*/job-*.sh")]
    named = {digest for digest in codes if digest}
    for code in sorted((root / "code").glob("*")):
        if code.name not in named and not _is_recent(code) and not any(str(code) in text for text in scripts):
            unused.append(code)
    return unused


def _is_recent(folder: Path) -> bool:
    """True in the hour after it was made: a submission may be under way."""
    return time.time() - folder.stat().st_mtime < 3600


def _kept(folder: Path) -> str | None:
    from experiments.monitoring.queue import job_alive, live_entry
    from experiments.store.claims import Claim

    owner = Claim(folder, job_alive()).live_owner()
    if owner is not None:
        return f"running as {owner.where()}"
    if (entry := live_entry(folder)) is not None:
        return f"queued as job {entry.job}"
    if folder.stat().st_uid != os.getuid():
        return "belongs to another user"
    return None


def _held(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
