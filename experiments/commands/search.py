"""`maskgit search`: looks for the best values of an experiment; trials are steps of the store."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.commands._request import config_dirs, on_arguments, request_arguments

HELP = "look for the best values of an experiment, in trials that are pruned early"
EPILOG = """\
The experiment's file (or the command line) has a block `search:`:
  search:
    metric: fid                            # any score that maskgit compare shows; goal: minimize or maximize
    space:
      train.lr: {low: 1e-4, high: 1e-2, log: true}    # an interval; also {low: 2, high: 8, step: 2}
      model.num_layers: [2, 4, 8]                      # a list; files of a group too: sampler: [confidence, halton]
    trials: 60
    workers: 4                             # jobs at once; each works until no trial is left
    sampler: tpe                           # or random; both Optuna's: pip install 'maskgit-experiments[search]'
    prune: asha                            # at a ninth and a third of the training the best third goes on; null: all do
                                           # or {name: asha, at: [500, 1500], reduction: 3}; needs train.keep_every
Trials are steps like all others: found again, tracked in MLflow, shown by status, compare and report. Steps that all
trials share are made once, before them. A worker may be killed at any moment; another one goes on with its trial.
examples:
  maskgit search quickstart search.metric=class_accuracy 'search.space={train.lr: {low: 1e-3, high: 1e-2, log: true}}'
  maskgit search experiment=NAME --plan                    what it would cost; starts nothing
  maskgit search experiment=NAME launcher=slurm            an array of workers; nothing of ours stays on the login node
  maskgit search experiment=NAME search.trials=100         the same search, with more trials
  maskgit search NAME --status                             trials, the best first, and the command of the best
  maskgit search NAME --cancel                             ends its workers; the same command goes on later
exit codes: 0 done (or submitted), 1 trials are left, 2 the request is wrong
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, `--plan`, `--status`, `--all`, `--json`, `--cancel`."""
    request_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="say what would be searched, and at which cost")
    what.add_argument("--status", action="store_true", help="the trials of a search, the best first")
    what.add_argument("--cancel", action="store_true", help="end its workers; what trials have made is kept")
    parser.add_argument("--all", action="store_true", help="with --status: every trial")
    parser.add_argument("--json", action="store_true", help="with --status: machine-readable output")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Starts a search, or tells of one."""
    from experiments.searching.launch import refuse_without_optuna

    refuse_without_optuna()
    if args.status or args.cancel:
        return _of_earlier(args)
    from experiments.searching.launch import pending_shared, start
    from experiments.searching.report import plan_lines, status_lines
    from experiments.searching.request import ask

    dirs = config_dirs(args)
    asked = ask(args.overrides, dirs)
    if args.plan:
        print(*plan_lines(asked, pending_shared(asked)), sep="\n")
        return 0
    code = start(asked, dirs)
    if not asked.launcher.is_detached:
        from experiments.searching.launch import folder_of

        print(*status_lines(folder_of(asked)), sep="\n")
    return code


def _of_earlier(args: argparse.Namespace) -> int:
    """`--status` and `--cancel`: of a search by its experiment's name or its folder's."""
    from experiments.searching.launch import cancel
    from experiments.searching.report import as_json, find, status_lines
    from experiments.store.find import default_store
    from experiments.store.typed_json import DamagedError
    from maskgit_core.errors import ConfigError

    named = [text.removeprefix("experiment=") for text in args.overrides if not text.startswith("paths.store=")]
    if len(named) > 1 or any("=" in text for text in named):
        raise ConfigError(f"search: {' '.join(args.overrides)}: name one experiment, or a folder of <store>/searches")
    store = Path(args.asked_store).expanduser().absolute() if args.asked_store else default_store()
    folders = find(store, named[0] if named else None)
    if args.cancel and (len(folders) > 1 or not named):
        raise ConfigError(f"search: --cancel: which one? [{', '.join(folder.name for folder in folders)}]")
    for folder in folders:
        if args.cancel:
            print(*cancel(folder), sep="\n")
            continue
        try:
            print(*([as_json(folder)] if args.json else status_lines(folder, args.all)), sep="\n")
        except DamagedError as error:
            if len(folders) == 1:
                raise
            print(f"warning: {error}", file=sys.stderr)
    return 0
