"""`maskgit retry`: runs an earlier command again; only what is missing is done."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.commands._request import on_arguments

HELP = "run again what failed, was killed or cancelled"
EPILOG = """\
examples:
  maskgit retry quickstart                  the newest run of this experiment, with the same values and launcher
  maskgit retry quickstart/train            only this step (and what it needs that is missing)
  maskgit retry quickstart launcher=slurm   the same, somewhere else
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """A name, further overrides, `--on`, `--store`."""
    parser.add_argument("what", help="experiment, run uid, experiment/step, experiment/row, step")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values on top of the earlier command's")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Finds the record of the earlier run and runs its command."""
    from experiments.commands import parse_arguments, run, search
    from experiments.searching.report import search_of
    from experiments.store.find import default_store, select
    from experiments.store.records import records
    from maskgit_core.errors import ConfigError

    store = args.store.expanduser().absolute() if args.store else default_store()
    selection = select(args.what, store)
    record = next((r for r in records(store) if r.uid in selection.uids), None)
    if record is None:
        raise ConfigError(f"{args.what}: no run of it is recorded in {store}; start it with maskgit run")
    print(f"again: {record.command}")
    overrides = [*record.overrides, f"paths.store={store}", *args.overrides]
    folders = list(record.settings.get("config_dirs") or [])
    if search_of(store, record.uid) is not None:
        if not selection.is_whole:
            raise ConfigError(f"{args.what}: is a part of a search; maskgit retry {record.experiment} goes on with it")
        return search.main(parse_arguments("search", [*overrides, *(f"--config-dir={folder}" for folder in folders)]))
    again = argparse.Namespace(
        overrides=overrides,
        config_dir=folders,
        redo=[],
        only=None if selection.is_whole else {step.fingerprint for step in selection.steps},
    )
    return run.main(again)
