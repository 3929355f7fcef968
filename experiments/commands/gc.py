"""`maskgit gc`: shows what no execution needs any more; with `--delete` moves it to the trash."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.console import duration, number, size, table

if TYPE_CHECKING:
    from experiments.store.step_folder import Store

HELP = "show what no run needs any more; --delete moves it to the trash for a week"
EPILOG = """\
A step is needed while an execution that was not dropped used it (every `maskgit run` is recorded in <store>/pipelines),
or a needed step was made from it. Adopted steps are needed until they are dropped by name. Running steps and other
users' are never touched. Notes of submissions and frozen code go with the last step that was submitted with them.
examples:
  maskgit gc                                  what would go, with age, size and the work in it
  maskgit gc --drop 20260101-120000-1a2b3c4d  give up one run; --drop NAME gives up all runs of an experiment
  maskgit gc --delete                         move it to <store>/.trash; asks where it holds more than an hour's work
  maskgit gc --restore prenorm-2cb4d798       take it back
  maskgit gc --empty-trash                    delete what has been in the trash for a week
"""
ASK_ABOVE_S = 3600.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--drop`, `--delete`, `--yes`, `--restore`, `--empty-trash`, `--store`."""
    parser.add_argument("--drop", action="append", default=[], metavar="RUN", help="give up a run or an experiment")
    parser.add_argument("--delete", action="store_true", help="move it to the trash (default: only show)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--restore", metavar="STEP", help="take a step (its folder's name) out of the trash")
    parser.add_argument("--empty-trash", action="store_true", help="delete what has been in the trash for a week")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Lists, drops, moves, restores or deletes."""
    from experiments.store.find import default_store
    from experiments.store.step_folder import Store
    from experiments.store.upkeep.reach import drop
    from experiments.store.upkeep.trash import Trash
    from maskgit_core.files import sweep_leftovers

    root = args.store.expanduser().absolute() if args.store else default_store()
    store, trash = Store(root), Trash(root)
    for text in args.drop:
        print(f"dropped {', '.join(drop(store, text))}")
    if args.restore:
        for path in trash.restore(args.restore):
            print(f"restored {path}")
        return 0
    if args.empty_trash:
        freed, kept = trash.empty()
        print(f"{size(freed)} deleted; {size(kept)} younger than a week stay in {trash.place}")
        return 0
    if args.delete:
        sweep_leftovers(root, deep=True)
    unreached = _unreached(store)
    if not unreached:
        print("nothing to delete: every step is needed by a run")
        return 0
    _show(unreached, root)
    going = [entry for entry in unreached if not entry.kept]
    held = size(sum(entry.bytes for entry in going))
    if not args.delete:
        print(f"{held} would go to the trash; add --delete to do it")
        return 0
    if not _agreed(sum(entry.seconds for entry in going), args.yes):
        print("nothing was done")
        return 1
    _move(going, store, trash)
    print(f"{held} moved to {trash.place}; --restore STEP takes it back, --empty-trash deletes it after a week")
    return 0


@dataclass(frozen=True)
class Unreached:
    """A folder that nothing needs, and what is known of it."""

    folder: Path
    bytes: int
    kept: str | None = None  # why it stays all the same
    experiment: str = ""
    values: str = ""
    headline: str = ""
    age_s: float = 0.0
    seconds: float = 0.0  # of work
    gpu_hours: float = 0.0

    def row(self, root: Path) -> list[str]:
        """For the table."""
        work = f"{self.gpu_hours:.1f} GPU h" if self.gpu_hours else duration(self.seconds) if self.seconds else ""
        state = f"kept: {self.kept}" if self.kept else "unreached"
        name = str(self.folder.relative_to(root))
        return [name, self.experiment, self.values, self.headline, duration(self.age_s), work, size(self.bytes), state]


def _unreached(store: Store) -> list[Unreached]:
    from experiments.store.upkeep.reach import reachable

    reached = reachable(store)
    steps = list(store.steps())
    entries = [_of_step(folder) for folder in steps if folder.resolve() not in reached]
    going = {entry.folder for entry in entries if not entry.kept}
    staying = [folder for folder in steps if folder not in going]
    return entries + [_of_folder(place) for place in _unused(store.root, staying)]


def _of_step(folder: Path) -> Unreached:
    from experiments.config.sweep import label
    from experiments.store.documents import Launch, Manifest
    from experiments.store.upkeep.trash import held_bytes

    launch, manifest = Launch.read(folder), Manifest.read(folder)
    seconds = manifest.seconds if manifest else 0.0
    resources = launch.resources if launch else {}
    gpus = int(resources.get("gpus_per_task") or 0) * int(resources.get("ranks") or 1)
    head = manifest.headline if manifest else None
    return Unreached(
        folder,
        held_bytes(folder),
        _kept(folder),
        experiment=launch.experiment if launch else "",
        values=label(launch.params) if launch else "",
        headline=f"{head.name} {number(head.value)}" if head else "" if manifest else "not finished",
        age_s=time.time() - (manifest.time if manifest else folder.stat().st_mtime),
        seconds=seconds,
        gpu_hours=gpus * seconds / 3600,
    )


def _of_folder(folder: Path) -> Unreached:
    from experiments.store.upkeep.trash import held_bytes

    return Unreached(folder, held_bytes(folder), _kept(folder), age_s=time.time() - folder.stat().st_mtime)


def _show(unreached: Iterable[Unreached], root: Path) -> None:
    header = ["folder", "experiment", "values", "headline", "age", "work", "size", ""]
    print(table([header, *(entry.row(root) for entry in unreached)]))


def _agreed(seconds: float, yes: bool) -> bool:
    """Asks where more than an hour's work would go."""
    from maskgit_core.errors import ConfigError

    if yes or seconds <= ASK_ABOVE_S:
        return True
    question = f"this holds {duration(seconds)} of work; move it to the trash?"
    if not sys.stdin.isatty():
        raise ConfigError(f"--delete: {question} There is nobody to ask here; add --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _move(going: Collection[Unreached], store: Store, trash: object) -> None:
    from experiments.monitoring.queue import job_alive
    from experiments.store.upkeep.reach import reachable
    from experiments.store.upkeep.trash import Trash

    assert isinstance(trash, Trash)
    moved = [entry.folder for entry in going if trash.put(entry.folder, job_alive())]
    # A run that was planned meanwhile may have found one of them done and recorded that it needs it.
    store.refresh()
    wanted = reachable(store)
    for folder in moved:
        if folder.resolve() in wanted:
            trash.take_back(folder)
            print(f"{folder}: a run that began meanwhile needs it; it stays")


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
    scripts += [p.read_text() for p in (root / "pipelines").glob("*.json")]  # files of a request from another machine
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
