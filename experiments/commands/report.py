"""`maskgit report EXPERIMENT`: a page about any execution in the store, finished or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.commands._request import on_arguments

HELP = "a self-contained page about an experiment's newest run"
EPILOG = """\
The page of the `report` stage for any experiment: whatever is finished is on it. It loads nothing and runs no script.
examples:
  maskgit report quickstart
  maskgit report sampler_sweep --out sweep.html
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Experiment, `--out`, `--title`, `--on`, `--store`."""
    parser.add_argument("experiment", help="an experiment's name, or the uid of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: EXPERIMENT.html; -: print it")
    parser.add_argument("--title", help="the heading (default: the experiment's name)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    from experiments.reporting.page import inputs_of, page
    from experiments.store.find import default_store
    from experiments.store.records import latest_records
    from maskgit_core.errors import ConfigError
    from maskgit_core.files import write_bytes

    store = args.store.expanduser().absolute() if args.store else default_store()
    record = latest_records(store, args.experiment)[0]
    inputs = inputs_of(store, record)
    if not inputs:
        raise ConfigError(f"{args.experiment}: nothing of it is finished; maskgit status {args.experiment} says more")
    if args.out == Path("-"):
        sys.stdout.buffer.write(page(inputs, record, args.title).text.encode())
        return 0
    out = args.out or Path(f"{record.experiment.replace('/', '_')}.html")
    write_bytes(out, page(inputs, record, args.title).text.encode())
    print(out)
    return 0
