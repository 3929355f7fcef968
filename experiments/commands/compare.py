"""`maskgit compare`: config differences and metrics side by side."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.results.results import Result

HELP = "configs and metrics of runs side by side"
EPILOG = """\
Runs are named by step, experiment/step, run uid or fingerprint, or found by filters (all must hold). Numbers that were
measured under different protocols are never lined up. Runs that differ only in seeds show mean ± standard deviation.
examples:
  maskgit compare quickstart/evaluate other/evaluate
  maskgit compare experiment=quickstart 'sampler.guidance_scale>1'
  maskgit compare experiment=quickstart --html compare.html --x class_accuracy --y fd_efficientnet_lite0
  maskgit compare experiment=quickstart --plot sweep.png --x sampler.guidance_scale --y fd_efficientnet_lite0
"""
IS_FILTER = re.compile(r"(<=|>=|!=|=|<|>)")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Runs and filters, `--html`, `--plot`, `--json`, `--each`, `--store`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="RUN|FILTER", help="runs by name, filters as key=value, key<value"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with curves")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a chart of --y over --x (.png or .svg)")
    parser.add_argument("--x", help="metric or config key of the chart's x axis")
    parser.add_argument("--y", help="metric or config key of the chart's y axis")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--each", action="store_true", help="do not average over seeds")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Prints the comparison and writes the page and chart asked for."""
    from experiments.console import table
    from experiments.results.comparison import as_json, as_rows, chart_of, compare, page
    from experiments.store.find import default_store
    from maskgit_core.errors import ConfigError
    from maskgit_core.files import write_bytes

    store = args.store.expanduser().absolute() if args.store else default_store()
    if args.plot and not (args.x and args.y):
        raise ConfigError("--plot: needs --x and --y, each a metric or a config key")
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise ConfigError(f"--plot: {args.plot.name} is neither .png nor .svg")
    comparison = compare(chosen(args.overrides, store), group_seeds=not args.each)
    if args.json:
        print(json.dumps(as_json(comparison), indent=2, ensure_ascii=False))
    else:
        print(table(as_rows(comparison)))
        for text in comparison.refused:
            print(f"  {text}")
    if args.html:
        write_bytes(args.html, page(comparison, x=args.x, y=args.y).encode())
        print(f"wrote {args.html}")
    if args.plot:
        write_bytes(args.plot, chart_of(comparison, args.x, args.y, args.plot.suffix[1:]))
        print(f"wrote {args.plot}")
    return 0


def chosen(asked: Sequence[str], store: Path) -> list[Result]:
    """The results that names and filters mean.

    Raises:
        ConfigError: nothing matches, or a name means no finished evaluation.
    """
    from experiments.results.results import Filter, collect, select
    from experiments.store.find import select as select_steps
    from maskgit_core.errors import ConfigError

    if not asked:
        raise ConfigError("compare: names no run; give step names, run uids or filters such as experiment=NAME")
    results = collect(store)
    if not results:
        raise ConfigError(
            f"compare: no finished evaluation in {store}; set MASKGIT_STORE where the store lies elsewhere"
        )
    by_name: list[Result] = []
    names = [a for a in asked if not _is_filter(a, results)]
    for name in names:
        prints = {r.fingerprint for r in results if name in (r.run, r.name, r.run.partition("/")[0])}
        prints = prints or {step.fingerprint for step in select_steps(name, store).steps}
        by_fingerprint = [r for r in results if r.fingerprint in prints]
        if not by_fingerprint:
            known = ", ".join(dict.fromkeys(f"{r.experiment}/{r.name}" for r in results[:30]))
            raise ConfigError(f"{name}: has no scores; one of [{known}]")
        by_name += [r for r in by_fingerprint if r not in by_name]
    pool = by_name if names else results
    filters = [Filter.read(a) for a in asked if a not in names]
    if not names and not any(f.key in ("step", "stage") for f in filters):
        # Filters alone mean evaluations of samples; tokenizers are asked for by step or stage.
        pool = [r for r in pool if r.kind == "scores"] or pool
    matching = select(pool, filters)
    if not matching:
        raise ConfigError(f"{' '.join(asked)}: no run matches; {len(pool)} evaluations are there")
    return matching


def _is_filter(text: str, results: Sequence[Result]) -> bool:
    """A comparison, unless it is the name of a sweep's item (`evaluate[lr=0.1]`)."""
    return bool(IS_FILTER.search(text)) and text not in {n for r in results for n in (r.run, r.name)}
