"""`maskgit logs STEP`: what a step printed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from experiments.commands._request import on_arguments
from maskgit_core.errors import ConfigError

HELP = "what a step printed"
EPILOG = """\
examples:
  maskgit logs train                 the newest log of the step `train`
  maskgit logs quickstart/train -f   follow it
  maskgit logs train -f --on mysite  of a run on another machine, over ssh
  maskgit logs train --rank 1        another process of the step
  maskgit logs quickstart/3          the third row of `maskgit status quickstart`
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Step, `-f`, `--rank`, `-n`, `--on`, `--store`."""
    parser.add_argument("step", help="a step's name, experiment/step, fingerprint or folder")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing as it grows, until the step ends")
    parser.add_argument("--rank", type=int, default=0, help="which process of the step (default 0)")
    parser.add_argument("-n", "--lines", type=int, help="only the last N lines")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")
    on_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the newest log of the step."""
    from experiments.store.find import default_store, select

    store = args.store.expanduser().absolute() if args.store else default_store()
    folder = store / select(args.step, store).one.folder
    path = newest_log(folder, args.rank)
    while path is None and args.follow and _is_live(folder):
        time.sleep(1)
        path = newest_log(folder, args.rank)
    path = path or _job_output(folder, store)
    if path is None:
        raise ConfigError(f"{args.step}: has no log of rank {args.rank} yet (looked in {folder / 'logs'})")
    text = path.read_text(errors="replace")
    if not text:
        said = "nothing yet" if _is_live(folder) else "nothing"
        print(f"{args.step}: has printed {said}; its log is empty: {path}", file=sys.stderr)
    lines = text.splitlines(keepends=True)
    sys.stdout.write("".join(lines[-args.lines :] if args.lines else lines))
    if args.follow:
        _follow(path, folder, len(text.encode(errors="replace")))
    return 0


def newest_log(folder: Path, rank: int) -> Path | None:
    """The newest log file of a rank."""
    tail = f".rank{rank}"
    logs = [p for p in (folder / "logs").glob("*") if p.is_file()]
    own = [p for p in logs if (p.stem.endswith(tail) if rank else ".rank" not in p.stem)]
    return max(own, key=lambda p: p.stat().st_mtime, default=None)


def _job_output(folder: Path, store: Path) -> Path | None:
    """The output of srun and sbatch for a step's newest job; all there is where it died before the step began."""
    from experiments.monitoring.queue import submitted

    note = submitted(folder)
    if note is None:
        return None
    outputs = [p for job in note.links for p in (store / "slurm" / note.pipeline).glob(f"*/{job}_*log.out")]
    return max(outputs, key=lambda p: p.stat().st_mtime, default=None)


def _is_live(folder: Path) -> bool:
    """True while the step runs or waits in the queue."""
    from experiments.monitoring.queue import job_alive, live_entry
    from experiments.store.claims import Claim

    return Claim(folder, job_alive()).live_owner() is not None or live_entry(folder) is not None


def _follow(path: Path, folder: Path, position: int) -> None:
    while True:
        alive = _is_live(folder)
        with open(path, "rb") as file:
            file.seek(position)
            new = file.read()
        position += len(new)
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()
        if not alive:
            return
        time.sleep(0.5)
