"""`maskgit sync`: ships journals to MLflow, once or continuously."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskgit_core.errors import TrackingError

if TYPE_CHECKING:
    from experiments.tracking.address import ShipReport

HELP = "ship journals to MLflow and correct the state of runs that died"
EPILOG = """\
Safe at any time, from any machine that sees the store, also while steps run and while others sync: each point arrives
exactly once. The store's own SQLite is the default; give --uri (or MLFLOW_TRACKING_URI) for a tracking server.
examples:
  maskgit sync
  maskgit sync --follow                                   every ten seconds, until Ctrl-C
  maskgit sync --also wandb                               offline runs of Weights & Biases for all that is there
  maskgit sync --uri http://tracker:5000      credentials: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--follow`, `--also`, `--uri`, `--store`."""
    parser.add_argument("--follow", action="store_true", help="go on until interrupted")
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS", help="pause between rounds (default 10)"
    )
    parser.add_argument("--also", action="append", default=[], choices=("tensorboard", "wandb"),
                        help="write these for every run, as tracking.also does for one")  # fmt: skip
    parser.add_argument("--uri", help="tracking store (default: MLFLOW_TRACKING_URI, else SQLite in the store)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Ships what is new; 1 where something could not be shipped."""
    from experiments.config.settings import default_uri, refuse_password
    from experiments.store.find import default_store
    from experiments.tracking.address import follow

    store = args.store.expanduser().absolute() if args.store else default_store()
    uri = refuse_password(args.uri) or default_uri()
    if not args.follow:
        return _tell(_once(store, uri, args.also))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    code = 0
    for report in follow(lambda: _once(store, uri, args.also), args.every, lambda: bool(stopped)):
        if report.touched or report.problems:
            code = _tell(report)
    return code


def _once(store: Path, uri: str | None, also: Sequence[str]) -> ShipReport:
    """Ships to MLflow, then to the windows of `tracking.also`, whose refusals are problems of the report."""
    from experiments.monitoring.queue import job_alive
    from experiments.tracking.mlflow_store import ship
    from experiments.tracking.windows import mirror

    report = ship(store, uri, job_alive=job_alive())
    try:
        mirror(store, also)
    except TrackingError as error:
        report.problems.append(str(error))
    return report


def _tell(report: ShipReport) -> int:
    from experiments.config.settings import without_password

    if report.uri:
        print(
            f"{report.touched} of {report.runs} runs brought up to date, {report.points} points shipped to "
            f"{without_password(report.uri)}",
            flush=True,
        )
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr, flush=True)
    return 1 if report.problems else 0
