"""`maskgit verify [STEP]`: checks documents and outputs of finished steps; with `--repair` mends what can be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.store.step_folder import Store
    from experiments.store.typed_json import DamagedError

HELP = "check that a step (or the whole store) is undamaged"
EPILOG = """\
Reads every document and journal of the steps, the records of the store's runs and searches, and compares each output
with its manifest; --deep hashes every byte, also of files whose size and time are what they were, and compares the
points in the store's mlflow.db with the journals. Exit code 1 where something is damaged.
examples:
  maskgit verify                       the whole store, quickly
  maskgit verify quickstart/train --deep
  maskgit verify --repair              set damaged documents aside and rebuild them where their digests allow it
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Step, `--deep`, `--repair`, `--store`."""
    parser.add_argument("step", nargs="?", help="a step's name, experiment/step, fingerprint or folder (default: all)")
    parser.add_argument("--deep", action="store_true", help="hash every output")
    parser.add_argument("--repair", action="store_true", help="set damaged documents aside and rebuild what can be")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Prints what is damaged, one line each."""
    from experiments.store.find import default_store, select
    from experiments.store.step_folder import Store
    from experiments.store.upkeep.repair import changed_journals, damage, repair_records, repair_steps
    from experiments.tracking.database_check import unlike_journals

    store = Store(args.store.expanduser().absolute() if args.store else default_store())
    steps = [store.root / s.folder for s in select(args.step, store.root).steps] if args.step else list(store.steps())
    broken = [] if args.step else _damaged_records(store)
    if args.repair:
        for line in [*repair_records(broken), *repair_steps(store, steps)]:
            print(line)
        broken = []
    problems = [str(error) for error in broken]
    for folder in steps:
        damaged = [str(error) for error in damage(folder)]
        problems += damaged or [*_outputs(folder, args.deep), *changed_journals(folder)]
    problems += unlike_journals(store.root) if args.deep and not args.step else []
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(steps)} steps: {f'{len(problems)} problems' if problems else 'no damage found'}")
    return 1 if problems else 0


def _damaged_records(store: Store) -> list[DamagedError]:
    from experiments.searching.request import SearchRecord
    from experiments.searching.trial_log import JOURNAL, journal_damage
    from experiments.store.records import PipelineRecord, pipelines
    from experiments.store.typed_json import DamagedError

    broken: list[DamagedError] = []
    searches = sorted(store.root.glob(f"searches/*/{SearchRecord.FILE}"))
    load: Callable[[Path], object]
    for load, path in [*((PipelineRecord.load, p) for p in pipelines(store.root)),
                       *((SearchRecord.load, p) for p in searches)]:  # fmt: skip
        try:
            load(path)
        except DamagedError as error:
            broken.append(error)
    journals = (journal_damage(path) for path in sorted(store.root.glob(f"searches/*/{JOURNAL}")))
    return broken + [problem for problem in journals if problem is not None]


def _outputs(folder: Path, deep: bool) -> list[str]:
    from experiments.store.documents import Manifest
    from experiments.store.step_folder import check_outputs
    from experiments.store.upkeep.repair import changed_outputs
    from maskgit_core.errors import ArtifactError

    manifest = Manifest.read(folder)
    if manifest is None:
        return []
    if deep:
        remedy = "restore the file, or run again with --redo and this step's name"
        return [f"{problem}; {remedy}" for problem in changed_outputs(folder, manifest)]
    try:
        check_outputs(folder, manifest)
    except ArtifactError as error:
        return [str(error)]
    return []
