"""The verbs of `maskgit`: one file each with `HELP`, `arguments(parser)` and `main(args) -> exit code`."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

#: Commands whose request says where they are carried out (`launcher.ssh`); the others are told by `--on`.
BY_LAUNCHER = ("run", "plan", "doctor", "search")
COMMANDS = Path(__file__).resolve().parent
ORDER = ("run", "plan", "status", "logs", "cancel", "retry", "failures", "config", "report", "compare", "table",
         "reproduce", "ui", "sync", "adopt", "gc", "doctor", "shards", "weights", "completion")  # fmt: skip


def command_names() -> list[str]:
    """The verbs there are, in the order people meet them."""
    names = [p.stem for p in COMMANDS.glob("*.py") if not p.stem.startswith("_")]
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def help_line(name: str) -> str:
    """A command's HELP, read from source so that `--help` imports none of them."""
    for node in ast.parse((COMMANDS / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "HELP":
            return str(ast.literal_eval(node.value))
    return ""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one verb; imports its file."""
    module = import_module(f"experiments.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"maskgit {name}",
        description=module.HELP,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    return parser


def parse_arguments(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments of one verb; `key=value` may be anywhere among the options."""
    parser = parser_of(name)
    args, rest = parser.parse_known_args(list(argv))
    if rest:
        loose = [r for r in rest if not r.startswith("-") and ("=" in r or r.startswith("~"))]
        if len(loose) < len(rest) or not isinstance(getattr(args, "overrides", None), list):
            parser.error(f"unrecognized arguments: {' '.join(r for r in rest if r not in loose) or ' '.join(rest)}")
        args.overrides = [*args.overrides, *loose]
    if (store := getattr(args, "asked_store", None)) is not None:  # the option that other commands have, as an override
        quoted = store.replace("\\", "\\\\").replace("'", "\\'")
        args.overrides = [*args.overrides, f"paths.store='{quoted}'"]
    return args
