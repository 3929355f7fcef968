"""`maskgit table`: a paper's table, published beside reproduced."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "a paper's table: published numbers beside yours"
EPILOG = """\
Tables are described in conf/table/ (or DIR/table/ with --config-dir DIR). A cell that no finished run fills is named
with the command that would fill it. A run that differs from what its row asks for fills none: the cell says in what.
Numbers of unlike protocols are refused.
examples:
  maskgit table                               the tables there are
  maskgit table quickstart
  maskgit table quickstart --where train.lr=1e-3     runs with this value fill its rows, which say by what they differ
  maskgit table quickstart --run 20261127-022713     this run alone
  maskgit table quickstart --cost                    with a column of GPU-hours
  maskgit table maskgit_imagenet256 --format tex -o table1.tex
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Name, `--where`, `--run`, `--cost`, `--format`, `--output`, `--store`, `--config-dir`."""
    parser.add_argument("name", nargs="?", help="a file of conf/table/")
    parser.add_argument("--format", choices=["md", "tex", "csv", "html", "json"], default="md", help="default md")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here instead of printing")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="take the runs with this value; repeatable"
    )
    parser.add_argument("--run", metavar="UID", help="take this run: its uid, or an evaluation's fingerprint")
    parser.add_argument("--cost", action="store_true", help="also what each row took: GPU-hours, with all upstream")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder with tables of your own"
    )


def main(args: argparse.Namespace) -> int:
    """Prints or writes the table; the number of missing cells goes to standard error."""
    from experiments.commands._request import config_dirs
    from experiments.results.results import Filter
    from experiments.results.row_requests import RowRequests
    from experiments.results.table_formats import FORMATS
    from experiments.results.tables import fill, missing, read_table, table_names
    from experiments.store.find import default_store
    from maskgit_core.files import write_bytes

    places = config_dirs(args)
    if args.name is None:
        for name in table_names(places):
            print(f"  {name:<32} {read_table(name, places).title}")
        return 0
    store = args.store.expanduser().absolute() if args.store else default_store()
    filled = fill(read_table(args.name, places), store, RowRequests(places),
                  filters=[Filter.read(text) for text in args.where], run=args.run)  # fmt: skip
    if args.cost:
        from experiments.results.costs import with_costs

        filled = with_costs(filled)
    text = FORMATS[args.format](filled)
    if args.output:
        write_bytes(args.output, text.encode())
        print(f"wrote {args.output}")
    else:
        print(text, end="")
    absent = missing(filled)
    if absent and args.format in ("csv", "json", "tex"):
        print(f"{len(absent)} cells are missing:", *absent, sep="\n  ", file=sys.stderr)
    return 0
