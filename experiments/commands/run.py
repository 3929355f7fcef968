"""`maskgit run`: plans, then runs what is missing; with `launcher=slurm` submits it and returns."""

from __future__ import annotations

import argparse

from experiments.commands._request import config_dirs, part_arguments, part_of, request_arguments
from experiments.console import coloured

HELP = "run an experiment; finished steps are found and not run again"
EPILOG = """\
examples:
  maskgit run quickstart                                   or experiment=quickstart
  maskgit run experiment=quickstart train.lr=1e-3,2e-3     a sweep; the tokenizer and the cache are made once
  maskgit run experiment=quickstart sweep=FILE.yaml        grid, zip, list, exclude, seeds
  maskgit run experiment=quickstart --redo evaluate        run a finished step again; the old result is kept
  maskgit run experiment=quickstart --until train          this step and what it needs; also --from, --only
  maskgit run experiment=NAME toy=true                     the same plan in small, in a store of its own: does it end?
  maskgit run experiment=NAME launcher=slurm               submit the whole DAG and return
  maskgit run experiment=NAME launcher=slurm launcher.ssh=me@login    the same from a laptop (docs/slurm.md)
Finished points of a sweep that other code made than makes its new points run again; --reuse-old-code keeps them.
exit codes: 0 done, 1 a step failed, 2 the request is wrong
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, parts of the DAG and `--redo`."""
    request_arguments(parser)
    part_arguments(parser)
    parser.add_argument("--redo", action="append", default=[], metavar="STEP", help="run this step again")
    parser.add_argument("--reuse-old-code", action="store_true", help="keep a sweep's points that older code made")
    voice = parser.add_mutually_exclusive_group()
    voice.add_argument("-q", "--quiet", dest="voice", action="store_const", const="quiet", default="normal",
                       help="print how it ended alone")  # fmt: skip
    voice.add_argument("-v", "--verbose", dest="voice", action="store_const", const="verbose",
                       help="also print what every step prints")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Composes the request and starts it."""
    from experiments.launching.calls import load_launcher
    from experiments.launching.execution import fetch_weights, start
    from experiments.launching.telling import Voice
    from experiments.planning.pipeline import build

    graph = build(args.overrides, config_dirs(args), check=lambda settings: load_launcher(settings["launcher"]),
                  fetch=fetch_weights, part=part_of(args))  # fmt: skip
    voice: Voice = getattr(args, "voice", "normal")  # retry and reproduce have no such options
    for line in (*graph.notes, *graph.left_out) if voice != "quiet" else ():
        print(coloured(line, "yellow"))
    only = getattr(args, "only", None)  # set by `maskgit retry STEP`
    return start(graph, load_launcher(graph.settings["launcher"]), redo=args.redo, only=only, voice=voice,
                 reuse_old_code=getattr(args, "reuse_old_code", False))  # fmt: skip
