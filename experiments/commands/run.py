"""`maskgit run`: plans, then runs what is missing; with `launcher=slurm` submits it and returns."""

from __future__ import annotations

import argparse

from experiments.commands._request import config_dirs, part_arguments, part_of, request_arguments
from experiments.console import coloured
from experiments.launching.execution import _launch, check_datasets, fetch_weights
from experiments.planning.plan_table import print_plan

HELP = "run an experiment; finished steps are found and not run again"
EPILOG = """\
examples:
  maskgit run experiment=quickstart
  maskgit run experiment=quickstart train.lr=1e-3,2e-3     a sweep; the tokenizer and the cache are made once
  maskgit run experiment=quickstart sweep=FILE.yaml        grid, zip, list, exclude, seeds
  maskgit run experiment=quickstart --redo evaluate        run a finished step again; the old result is kept
  maskgit run experiment=quickstart --until train          this step and what it needs; also --from, --only
  maskgit run experiment=NAME launcher=slurm               submit the whole DAG and return
exit codes: 0 done, 1 a step failed, 2 the request is wrong
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, parts of the DAG and `--redo`."""
    request_arguments(parser)
    part_arguments(parser)
    parser.add_argument("--redo", action="append", default=[], metavar="STEP", help="run this step again")


def main(args: argparse.Namespace) -> int:
    """Plans, prepares, launches, reports."""
    from experiments.launching.calls import load_launcher
    from experiments.launching.submission import restricted
    from experiments.monitoring.queue import job_alive
    from experiments.planning.graph import store_of
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner

    only = getattr(args, "only", None)  # set by `maskgit retry STEP`
    graph = build(args.overrides, config_dirs(args), check=lambda settings: load_launcher(settings["launcher"]),
                  fetch=fetch_weights, part=part_of(args))  # fmt: skip
    for line in graph.left_out:
        print(coloured(line, "yellow"))
    launcher = load_launcher(graph.settings["launcher"])
    store = store_of(graph)
    if hasattr(launcher, "submit"):
        from experiments.launching.submission import submit

        return submit(graph, store, launcher, redo=args.redo, only=only)
    planned = restricted(Planner(graph, redo=args.redo, job_alive=job_alive()).plan(), only)
    print_plan(planned)
    if all(s.action == "done" for s in planned):
        print("nothing to do: every step is done and was not run again")
        return 0
    store.check_writable()
    check_datasets(planned)
    return _launch(graph, planned, store, launcher)
