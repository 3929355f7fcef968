"""`maskgit weights`: published weights on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskgit_core.weights.registry import Entry

HELP = "list, fetch, import and verify published weights"
EPILOG = """\
Weights lie in $MASKGIT_HOME/weights (default ~/.cache/maskgit/weights). Their licences are their publishers'.
examples:
  maskgit weights list
  maskgit weights fetch titok/maskgit-vqgan-imagenet-f16-256
  maskgit weights import taming/vqgan_imagenet_f16_16384 ~/Downloads/last.ckpt
  maskgit weights verify                         everything that is here: bytes and layout
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `fetch NAME...`, `import NAME PATH`, `verify [NAME...]`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|import|verify")
    shown = actions.add_parser("list", help="every known checkpoint: whether it is here, licence, source")
    shown.add_argument("--json", action="store_true", help="as JSON")
    fetched = actions.add_parser("fetch", help="download; shows the licence first, goes on where it stopped")
    fetched.add_argument("names", nargs="+", metavar="NAME")
    imported = actions.add_parser("import", help="check a file you have and put it where it belongs")
    imported.add_argument("name", metavar="NAME")
    imported.add_argument("path", metavar="PATH", type=Path)
    verified = actions.add_parser("verify", help="compare sha256 and load strictly")
    verified.add_argument("names", nargs="*", metavar="NAME", help="default: all that are here")


def main(args: argparse.Namespace) -> int:
    """Runs the action; 1 where `verify` found something wrong."""
    if args.action == "list":
        return _list(args.json)
    if args.action == "fetch":
        return _fetch(args.names)
    if args.action == "import":
        return _import(args.name, args.path)
    return _verify(args.names)


def _list(as_json: bool) -> int:
    from experiments.console import size, table
    from maskgit_core.weights.registry import home, places, registry

    rows, facts = [("name", "here", "licence", "source")], []
    for entry in registry().values():
        here = next((p for p in places(entry) if p.is_file()), None)
        state = size(here.stat().st_size) if here else "-"
        rows.append((entry.name, state, entry.licence.partition(",")[0], entry.source))
        facts.append({"name": entry.name, "path": str(here) if here else None, "licence": entry.licence,
                      "source": entry.source, "target": str(entry.target)})  # fmt: skip
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print(table(rows, ("bold",)))
        print(f"  files lie in {home()}; `maskgit weights fetch NAME` downloads one")
    return 0


def _fetch(names: list[str]) -> int:
    from experiments.running.progress import Progress
    from maskgit_core.weights.download import fetch
    from maskgit_core.weights.registry import by_name

    for name in [by_name(name).name for name in names]:  # all names are right before anything is downloaded
        bar: list[Progress] = []

        def show(done: int, total: int | None, bar: list[Progress] = bar, label: str = name) -> None:
            if not bar:
                bar.append(Progress(total, unit="B", label=label))
            bar[0].update(done - bar[0].done)

        path = fetch(name, lambda line: print(line, flush=True), show)
        if bar:
            bar[0].close()
        print(f"{name}: {path}")
    return 0


def _import(name: str, path: Path) -> int:
    from maskgit_core.weights.download import check_file, import_file
    from maskgit_core.weights.registry import by_name

    entry, path = by_name(name), path.expanduser()
    check_file(entry, path)
    said = _layout(entry, str(path))  # before its sha256 is recorded: a wrong file must not stand for the right one
    print(f"{name}: {import_file(name, path)}; {said}")
    return 0


def _verify(names: list[str]) -> int:
    from maskgit_core.errors import WeightsError
    from maskgit_core.weights.download import missing
    from maskgit_core.weights.registry import by_name, registry

    wanted = [by_name(name) for name in names]
    if not names:
        absent = missing(list(registry()))
        wanted = [entry for entry in registry().values() if entry.name not in absent]
    bad = 0
    for entry in wanted:
        try:
            print(f"{entry.name}: {_verified(entry)}", flush=True)
        except WeightsError as error:
            bad += 1
            print(f"{entry.name}: WRONG: {error}", file=sys.stderr, flush=True)
    print(f"{len(wanted) - bad} of {len(wanted)} right")
    return 1 if bad else 0


def _verified(entry: Entry) -> str:
    """Checks bytes and layout; prints what was compared."""
    from maskgit_core.weights.registry import verified

    known = entry.sha256 or entry.sha256_prefix
    verified(entry.name)
    bytes_say = "sha256 as published" if known else "sha256 as recorded at first use"
    return f"{bytes_say}; {_layout(entry, entry.name)}"


def _layout(entry: Entry, weights: str) -> str:
    """Loads a tokenizer's weights (a registry name or a file) strictly, reads others; returns a line about them."""
    import importlib

    from maskgit_core.weights.pickles import read_state_dict
    from maskgit_core.weights.registry import locate

    if entry.component.startswith("tokenizers/"):
        module = importlib.import_module(f"maskgit_core.{entry.component.replace('/', '.')}")
        tokenizer = module.Tokenizer(weights=weights)
        return f"loads strictly; {tokenizer.codebook_size:,} codes"
    tensors = read_state_dict(locate(weights), ("model_state_dict", "state_dict", "model"))
    return f"holds {len(tensors):,} tensors"
