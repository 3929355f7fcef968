"""`maskgit ui`: opens MLflow on the store, after shipping what is new."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HELP = "open MLflow on the store"
EPILOG = """\
Ships what is new first, then serves on the loopback address; from a login node use ssh -L 5000:localhost:5000.
Without telemetry and without MLflow's job workers. For others to reach it, say so:
examples:
  maskgit ui                     the experiment with the newest run
  maskgit ui quickstart          this one
  maskgit ui --port 5001 --no-sync
  maskgit ui --host 0.0.0.0 --allowed-hosts 'tracker.lab.org:*,10.*'
  maskgit ui --host 0.0.0.0 --basic-auth       asks for user and password; MLflow's auth app wants
      MLFLOW_AUTH_ADMIN_PASSWORD (of the first user, admin) and MLFLOW_FLASK_SERVER_SECRET_KEY in the environment
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Experiment, address, port, hosts, `--uri`, `--store`, `--no-sync`, `--no-browser`."""
    parser.add_argument("experiment", nargs="?", help="open this experiment's runs (default: that of the newest run)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=5000, help="default 5000")
    parser.add_argument("--allowed-hosts", metavar="LIST", help="host names that may be asked for, e.g. 'node17:*'")
    parser.add_argument(
        "--basic-auth", action="store_true", help="ask for user and password (pip install 'mlflow[auth]')"
    )
    parser.add_argument("--no-sync", action="store_true", help="serve what is there without shipping first")
    parser.add_argument("--uri", help="tracking database (default: MLFLOW_TRACKING_URI, else SQLite in the store)")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Ships, then serves until Ctrl-C; with a tracking server elsewhere it only prints its address."""
    from experiments.config.settings import default_uri, refuse_password, resolve_uri
    from experiments.monitoring.queue import job_alive
    from experiments.store.find import default_store
    from experiments.tracking.server import serve
    from maskgit_core.errors import TrackingError

    store = args.store.expanduser().absolute() if args.store else default_store()
    uri = resolve_uri(store, refuse_password(args.uri) or default_uri())
    if not args.no_sync:
        from experiments.tracking.mlflow_store import ship

        report = ship(store, uri, job_alive=job_alive())
        for problem in report.problems:
            print(f"warning: {problem}", file=sys.stderr)
    if uri.startswith("http"):
        print(f"a tracking server keeps these runs: open {uri}")
        return 0
    if args.port < 1 or args.port > 65535:
        raise TrackingError(f"--port: {args.port} is no port; one of 1 ... 65535")
    from experiments.tracking.pages import runs_page

    reached = "localhost" if args.host in ("127.0.0.1", "0.0.0.0") else args.host
    page = runs_page(store, uri, f"http://{reached}:{args.port}", args.experiment)
    return serve(
        store, uri, host=args.host, port=args.port, allowed_hosts=args.allowed_hosts, basic_auth=args.basic_auth,
        page=page, browser=not args.no_browser and has_screen(),
    )  # fmt: skip


def has_screen() -> bool:
    """True where a person sits at this machine's own terminal and screen."""
    local = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"
    return bool(local) and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ
