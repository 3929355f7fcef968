"""The command `maskgit`: finds the verb's file in `experiments/commands/`, parses, and turns errors into one line."""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from maskgit_core.errors import MaskgitError

COMMANDS = Path(__file__).resolve().parent / "commands"
ORDER = ("run", "plan", "status", "logs", "cancel", "retry", "failures", "config", "compare", "table", "reproduce",
         "ui", "sync", "adopt", "gc", "doctor", "shards", "weights", "completion")  # fmt: skip
EXAMPLES = """\
examples:
  maskgit run experiment=quickstart                       the whole walk on bundled pictures
  maskgit plan experiment=quickstart train.lr=1e-3        what would run, and why
  maskgit run experiment=quickstart train.lr=1e-3,2e-3    a sweep; finished steps are shared
  maskgit status --watch                                  every step: state, time, headline number
  maskgit run experiment=NAME launcher=slurm              submit the whole DAG and return
"""


def command_names() -> list[str]:
    """The verbs there are, in the order people meet them."""
    found = [p.stem for p in COMMANDS.glob("*.py") if not p.stem.startswith("_")]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def help_line(name: str) -> str:
    """A command's HELP, read from source so that `--help` imports none of them."""
    for node in ast.parse((COMMANDS / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "HELP":
            return str(ast.literal_eval(node.value))
    return ""


def overview() -> argparse.ArgumentParser:
    """The parser of bare `maskgit`: lists the verbs and the experiments."""
    from experiments.config import CONF

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
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The verb and its parsed arguments; `key=value` may stand anywhere among the options."""
    from experiments.values import suggestion

    if not argv or argv[0] in ("-h", "--help"):
        overview().print_help()
        raise SystemExit(0)
    name = argv[0]
    if name not in command_names():
        near = suggestion(name, command_names())
        raise MaskgitError(f"{name}: unknown command; {near}One of [{', '.join(command_names())}]")
    module = import_module(f"experiments.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"maskgit {name}",
        description=module.HELP,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    args, rest = parser.parse_known_args(list(argv[1:]))
    if rest:
        loose = [r for r in rest if not r.startswith("-") and ("=" in r or r.startswith("~"))]
        if len(loose) < len(rest) or not isinstance(getattr(args, "overrides", None), list):
            parser.error(f"unrecognized arguments: {' '.join(r for r in rest if r not in loose) or ' '.join(rest)}")
        args.overrides = [*args.overrides, *loose]
    return name, args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; exit code 0 done, 1 a step failed, 2 the request is wrong."""
    try:
        name, args = parse(sys.argv[1:] if argv is None else argv)
        return int(import_module(f"experiments.commands.{name}").main(args))
    except MaskgitError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted; run the same command to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from experiments.atomic import explain

        if os.environ.get("MASKGIT_DEBUG"):
            raise
        return _refuse(str(explain(error, Path(str(error.filename or "disk")))))


def _refuse(text: str, code: int = 2) -> int:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
