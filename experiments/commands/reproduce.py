"""`maskgit reproduce`: the config, the code state and the command behind a run or a table's cell."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.store.origin import Origin

HELP = "the exact config, code state and command behind a run or a table cell"
EPILOG = """\
--run executes the command; with --into DIR in a fresh store, and then compares what came out with the original, file
by file. It refuses where the code is not the one that made the run; --diff prints the changes the original had on top
of its commit, as a patch.
examples:
  maskgit reproduce quickstart/evaluate
  maskgit reproduce 20260101-120000-1a2b3c4d/evaluate
  maskgit reproduce --table quickstart --row quickstart --column fd
  maskgit reproduce quickstart/evaluate --run --into /tmp/again
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Run or table cell, `--run`, `--into`, `--anyway`, `--diff`, `--json`, `--store`, `--config-dir`."""
    parser.add_argument("name", nargs="?", metavar="RUN", help="step, experiment/step, run uid or fingerprint")
    parser.add_argument("--table", help="a table whose cell to reproduce, with --row and --column")
    parser.add_argument("--row", help="the row's name")
    parser.add_argument("--column", help="the column's key")
    parser.add_argument("--run", action="store_true", help="execute the command")
    parser.add_argument("--into", type=Path, metavar="DIR", help="run in this store instead, and compare the outputs")
    parser.add_argument("--anyway", action="store_true", help="run although the code differs from the original's")
    parser.add_argument("--diff", action="store_true", help="print the original's changes to its commit, as a patch")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder with groups of your own"
    )


def main(args: argparse.Namespace) -> int:
    """Prints what is known; with `--run` executes it; 1 where what came out differs."""
    from experiments.commands._request import config_dirs
    from experiments.store.find import default_store
    from experiments.store.origin import code_difference, origins
    from experiments.store.typed_json import plain

    store = args.store.expanduser().absolute() if args.store else default_store()
    places = config_dirs(args)
    names = _cell_runs(args, store, places) if args.table else [_named(args)]
    chosen = [o for name in names for o in origins(name, store)]
    if args.diff:
        for origin in chosen:
            print(origin.code.diff, end="")
        return 0
    if args.json:
        print(json.dumps(plain(chosen), indent=2, default=str))
    else:
        for origin in chosen:
            _print(origin, code_difference(origin.code))
    if not args.run:
        return 0
    return max(_run(origin, args, places, store) for origin in chosen)


def _named(args: argparse.Namespace) -> str:
    from maskgit_core.errors import ConfigError

    if not args.name:
        raise ConfigError("reproduce: name a run, or a cell with --table, --row and --column")
    return str(args.name)


def _cell_runs(args: argparse.Namespace, store: Path, places: list[Path]) -> list[str]:
    """The runs behind a cell of a table."""
    from experiments.results.row_requests import RowRequests
    from experiments.results.tables import fill, read_table
    from maskgit_core.errors import ConfigError, unknown_name

    table = read_table(args.table, places)
    rows, columns = [r.name for r in table.rows], [c.key for c in table.columns if c.metric]
    if args.row not in rows:
        raise unknown_name("--row", str(args.row), rows, "row")
    if args.column not in columns:
        raise unknown_name("--column", str(args.column), columns, "column")
    cell = fill(table, store, RowRequests(places)).cells[rows.index(args.row)][args.column]
    if not cell.results:
        raise ConfigError(
            f"--table {args.table}: {cell.missing or 'this cell is published only; no experiment fills it'}"
        )
    return [r.run for r in cell.results]


def _print(origin: Origin, differs: str) -> None:
    import yaml

    code = origin.code
    commit = f"{code.commit or 'no commit'}{' with changes (--diff prints them)' if code.dirty else ''}"
    lines = {
        "run": origin.run,
        "folder": origin.folder,
        "command": origin.command,
        "code": commit,
        "here": differs or "the same code",
        "made": f"{origin.user} on {origin.host}",
        "fingerprint": origin.fingerprint,
        "outputs": f"digest {origin.digest}",
    }
    for name, value in lines.items():
        print(f"{name:<12} {value}")
    for key, digest in origin.outside.items():
        print(f"{'content':<12} {key} {digest}")
    print("config")
    for line in yaml.safe_dump(origin.config, sort_keys=True, default_flow_style=False).splitlines():
        print(f"  {line}")


def _run(origin: Origin, args: argparse.Namespace, places: list[Path], store: Path) -> int:
    """Executes the command, in a fresh store where one is named."""
    from experiments.commands import parse_arguments, run
    from experiments.store.origin import code_difference, compare_outputs
    from maskgit_core.errors import ConfigError

    differs = code_difference(origin.code)
    if differs and not args.anyway:
        raise ConfigError(
            f"{origin.run}: {differs}; get its code (git worktree add ../original "
            f"{origin.code.commit}) and run there, or add --anyway"
        )
    target = args.into.expanduser().absolute() if args.into else store
    os.environ["MASKGIT_STORE"] = str(target)
    dirs = [part for place in places for part in ("--config-dir", str(place))]
    code = run.main(parse_arguments("run", [*shlex.split(origin.command)[2:], *dirs]))
    if code != 0 or not args.into:
        return code
    problems = compare_outputs(origin, target)
    if not problems:
        print(f"{origin.run}: reproduced; every output is the same, byte for byte")
        return 0
    print(f"{origin.run}: came out differently", *problems, sep="\n  ", file=sys.stderr)
    return 1
