"""Arguments and printing that `run`, `plan`, `config` and `doctor` share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import launchers  # noqa: F401  (found now: a folder of that name beside somebody's plugins must not stand in for it)
from experiments.planning.parts import Part
from maskgit_core.errors import ConfigError

#: Options of Hydra's command line that people type from habit, and what does that here.
_OF_HYDRA = {
    ("--cfg", "-c"): "write maskgit config experiment=NAME [--checked]",
    ("--info", "-i"): "write maskgit doctor, or maskgit config experiment=NAME",
    ("--config-name", "-cn"): "write experiment=NAME, a file of conf/experiment/",
    ("--config-path", "-cp"): "write --config-dir DIR, a folder with groups of your own",
    ("--package", "-p"): "write maskgit config experiment=NAME",
    ("--hydra-help",): "write maskgit COMMAND --help",
    ("--experimental-rerun",): "write maskgit reproduce RUN",
}


class _Answer(argparse.Action):
    """Refuses an option of Hydra's with what to write instead."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        answer = next(text for names, text in _OF_HYDRA.items() if option_string in names)
        raise ConfigError(f"{option_string}: is an option of Hydra's; {answer}")


def request_arguments(parser: argparse.ArgumentParser) -> None:
    """`key=value ...` and `--config-dir`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="experiment=NAME, choices and values; a,b sweeps"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # key=a,b sweeps anyway
    for names, answer in _OF_HYDRA.items():
        parser.add_argument(*names, action=_Answer, nargs="?", const=answer, metavar="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder with groups of your own"
    )
    parser.add_argument("--store", dest="asked_store", metavar="DIR", help="the store, as paths.store=DIR")


def part_arguments(parser: argparse.ArgumentParser) -> None:
    """`--until`, `--from`, `--only`."""
    for option, dest, meaning in (
        ("--until", "until", "this step and all that it needs"),
        ("--from", "since", "this step and all that needs it; what comes before must be finished"),
        ("--only", "only_steps", "this step alone; what it needs must be finished"),
    ):
        parser.add_argument(option, dest=dest, action="append", default=[], metavar="STEP", help=meaning)


def part_of(args: argparse.Namespace) -> Part:
    """The steps that the command line asks for."""
    return Part(*(tuple(getattr(args, name, ())) for name in ("until", "since", "only_steps")))


def config_dirs(args: argparse.Namespace) -> list[Path]:
    """The folders given, which must exist; packages beside or around them become importable, for `plugins`."""
    folders = []
    for name in args.config_dir:
        path = Path(name).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {name}: is not a folder")
        folders.append(path)
        around = [path.parent, *([path.parent.parent] if (path.parent / "__init__.py").exists() else [])]
        sys.path.extend(str(p) for p in around if str(p) not in sys.path)
    return folders


def on_arguments(parser: argparse.ArgumentParser) -> None:
    """`--on`, and the folders that may hold its launcher's file."""
    parser.add_argument(
        "--on", metavar="SITE", help="on another machine: a file of conf/launcher/ with `ssh`, or user@login"
    )
    if not any("--config-dir" in action.option_strings for action in parser._actions):
        parser.add_argument(
            "--config-dir", action="append", default=[], metavar="DIR", help="with --on: a folder with launcher files"
        )
