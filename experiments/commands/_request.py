"""Arguments and printing that `run`, `plan`, `config` and `doctor` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import launchers  # noqa: F401  (found now: a folder of that name beside somebody's plugins must not stand in for it)
from experiments.console import coloured, table
from experiments.plan import PlannedStep, summary
from maskgit_core.errors import ConfigError

COLOURS = {"done": "green", "running": "blue", "queued": "blue", "run": "yellow", "check": "dim"}


def request_arguments(parser: argparse.ArgumentParser) -> None:
    """`key=value ...` and `--config-dir`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="experiment=NAME, choices and values; a,b sweeps"
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder with groups of your own"
    )


def config_dirs(args: argparse.Namespace) -> list[Path]:
    """The folders given, which must exist; packages beside or around them become importable, for `plugins`."""
    found = []
    for name in args.config_dir:
        path = Path(name).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {name}: is not a folder")
        found.append(path)
        around = [path.parent, *([path.parent.parent] if (path.parent / "__init__.py").exists() else [])]
        sys.path.extend(str(p) for p in around if str(p) not in sys.path)
    return found


def print_plan(planned: Sequence[PlannedStep], *, limit: int = 60) -> None:
    """One line a step: what will happen and why; then warnings and the count."""
    shown = list(planned)
    if len(shown) > limit:
        shown = [s for s in shown if s.action != "done"][:limit] or shown[:limit]
    rows = [[s.node.name, "to run" if s.action == "run" else s.action, s.reason] for s in shown]
    print(table(rows, [COLOURS[s.action] for s in shown]))
    if len(shown) < len(planned):
        print(f"  ... and {len(planned) - len(shown)} more steps")
    for warning in dict.fromkeys(w for s in planned for w in s.warnings):
        print(coloured(f"  warning: {warning}", "yellow"))
    counts = summary(list(planned))
    words = {"run": "to run", "check": "to check"}
    print(f"{len(planned)} steps: " + ", ".join(f"{n} {words.get(a, a)}" for a, n in counts.items()))
