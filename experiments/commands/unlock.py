"""`maskgit unlock STEP`: removes the claim of a process that is gone."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.console import duration

HELP = "remove the claim that a dead process left on a step"
EPILOG = """\
Claims of dead processes on this machine, of ended jobs and of earlier boots are broken by whoever comes next; this is
for those that cannot be judged from here: another host, another container, a damaged file. It says what is known and
refuses while the owner lives or has shown a sign of life in the last five minutes (--force removes the claim anyway).
examples:
  maskgit unlock quickstart/train
  maskgit unlock runs/train/prenorm-2cb4d798 --force
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Step, `--force`, `--store`."""
    parser.add_argument("step", help="a step's name, experiment/step, fingerprint or folder")
    parser.add_argument("--force", action="store_true", help="although its owner may live")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Says who holds the claim and removes it."""
    from experiments.monitoring.queue import job_alive
    from experiments.store.claims import SILENT_S, Claim, is_alive
    from experiments.store.find import default_store, select
    from experiments.store.typed_json import DamagedError
    from maskgit_core.errors import ArtifactError
    from maskgit_core.files import explain

    folder = Path(args.step).expanduser().absolute()
    if not (folder / Claim(folder).path.name).exists():
        store = args.store.expanduser().absolute() if args.store else default_store()
        folder = store / select(args.step, store).one.folder
    claim = Claim(folder)
    silent = claim.silent_s()
    try:
        owner = claim.owner()
        alive = is_alive(owner, job_alive()) if owner is not None else False
    except DamagedError as error:
        print(f"{claim.path}: {error.problem}; its owner is not known")
        owner, alive = None, None
    if not claim.path.exists():
        print(f"{folder}: nobody holds it")
        return 0
    if owner is not None:
        told = {True: "lives", False: "is dead", None: "cannot be reached from here"}[alive]
        print(f"{claim.path}: {owner.where()} {told}; last sign of life {duration(silent)} ago")
    if not args.force and (alive or (owner is not None and alive is None and silent < SILENT_S)):
        raise ArtifactError(f"{claim.path}: its owner may live; end it first (maskgit cancel), or add --force")
    try:
        claim.path.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, claim.path) from error
    print(f"unlocked {folder}")
    return 0
