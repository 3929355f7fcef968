"""The command `maskgit`: finds the verb's file in `experiments/commands/`, parses, and turns errors into one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.commands import BY_LAUNCHER, command_names, help_line, parse_arguments, parser_of
from maskgit_core.errors import MaskgitError

EXAMPLES = """\
examples:
  maskgit run experiment=quickstart                       the whole walk on bundled pictures
  maskgit plan experiment=quickstart train.lr=1e-3        what would run, and why
  maskgit run experiment=quickstart train.lr=1e-3,2e-3    a sweep; finished steps are shared
  maskgit status --watch                                  every step: state, time, headline number
  maskgit run experiment=NAME launcher=slurm              submit the whole DAG and return
"""


def overview() -> argparse.ArgumentParser:
    """The parser of bare `maskgit`: lists the verbs and the experiments."""
    from experiments.config.compose import CONF

    names = [
        p.relative_to(CONF / "experiment").with_suffix("").as_posix() for p in (CONF / "experiment").rglob("*.yaml")
    ]
    verbs = "\n".join(f"  {name:<11} {help_line(name)}" for name in command_names())
    parser = argparse.ArgumentParser(
        prog="maskgit",
        description="Experiments with masked generative image transformers, from configs to tables.",
        epilog=f"commands (maskgit COMMAND --help says more):\n{verbs}\n\nexperiments:\n  "
        + "\n  ".join(sorted(names)) + f"\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The verb and its parsed arguments; `key=value` may be anywhere among the options."""
    from maskgit_core.errors import suggestion

    if argv and argv[0] in ("-V", "--version"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"maskgit {version('maskgit-experiments')}")
        except PackageNotFoundError:
            print("maskgit, not installed (a checkout on PYTHONPATH)")
        raise SystemExit(0)
    if not argv or argv[0] in ("-h", "--help"):
        overview().print_help()
        raise SystemExit(0)
    name = argv[0]
    if name not in command_names():
        near = suggestion(name, command_names())
        raise MaskgitError(f"{name}: unknown command; {near}One of [{', '.join(command_names())}]")
    return name, parse_arguments(name, argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; exit code 0 done, 1 a step failed, 2 the request is wrong."""
    if "_ARGCOMPLETE" in os.environ:
        from experiments.commands.completion import answer

        answer(os.environ.get("COMP_LINE", ""))
    unraisable, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        name, args = parse(sys.argv[1:] if argv is None else argv)
        if name in BY_LAUNCHER or getattr(args, "on", None):
            from experiments.commands._elsewhere import carry_out, destination

            if (place := destination(name, args)) is not None:
                return carry_out(place, name, args, parser_of(name))
        return int(import_module(f"experiments.commands.{name}").main(args))
    except MaskgitError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted; run the same command to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from maskgit_core.files import explain

        if os.environ.get("MASKGIT_DEBUG"):
            raise
        return _refuse(str(explain(error, Path(str(error.filename or "disk")))))
    finally:
        sys.unraisablehook = unraisable


def _interrupt_again(told: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a callback of the garbage collector, where Python would only print it, comes once more."""
    if told.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(told)


def _refuse(text: str, code: int = 2) -> int:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
