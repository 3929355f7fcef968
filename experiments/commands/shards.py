"""`maskgit shards`: what a token cache holds, whether it is whole, and ways in and out of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maskgit_core.errors import ConfigError, DataError

HELP = "token caches: info, verify, export, import, push, pull"
EPILOG = """\
examples:
  maskgit shards info PATH                              counts, sizes, how much of the codebook is used
  maskgit shards verify PATH                            checksums, torn tars, ids and labels out of range, counts
  maskgit shards verify PATH --decode 32                also writes PATH's first decoded samples as decoded.png
  maskgit shards export PATH npz_folder                 one npz file an image (idx, idx_flip, y)
  maskgit shards import npz_folder PATH --codebook-size 1024
  maskgit shards push PATH owner/name                   to a Hugging Face dataset repository
  maskgit shards pull owner/name PATH
PATH is a folder of shards with their manifest, or the folder of a cache_tokens step.
"""
ACTIONS = ("info", "verify", "export", "import", "push", "pull")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Action, paths and the options of each action."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("source", help="the cache; import: the npz folder; pull: owner/name")
    parser.add_argument("target", nargs="?", help="export, import, pull: the folder to write; push: owner/name")
    parser.add_argument("--json", action="store_true", help="info: machine-readable output")
    parser.add_argument("--decode", type=int, metavar="K", help="verify: write K decoded samples to look at")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="STEP", help="verify --decode: a train_tokenizer step's folder"
    )
    parser.add_argument("--out", type=Path, default=Path("decoded.png"), help="verify --decode: where to (decoded.png)")
    parser.add_argument("--codebook-size", type=int, metavar="K", help="import: of the tokenizer that made the files")
    parser.add_argument("--num-classes", type=int, metavar="N", help="import: number of classes (default: highest + 1)")
    parser.add_argument("--grid", metavar="HxW", help="import: where the token grid is not square")
    parser.add_argument("--prefix", default="", help="push, pull: a folder inside the repository")
    parser.add_argument("--revision", help="pull: branch, tag or commit")
    parser.add_argument("--public", action="store_true", help="push: make a new repository public")


def main(args: argparse.Namespace) -> int:
    """Dispatches to the action; exit code 1 where `verify` found something wrong."""
    if args.action in ("export", "import", "push", "pull") and not args.target:
        raise ConfigError(f"target: maskgit shards {args.action} needs a second argument; see maskgit shards --help")
    action = {"info": _info, "verify": _verify, "export": _export, "import": _import, "push": _push, "pull": _pull}
    return int(action[args.action](args))


def _info(args: argparse.Namespace) -> int:
    import json

    from experiments.console import size, table
    from maskgit_core.shards.checks import describe

    about = describe(Path(args.source))
    if args.json:
        print(json.dumps(about, indent=2))
        return 0
    per_class = about["samples_per_class"]
    rows = [
        ("samples", f"{about['num_samples']:,} in {about['num_shards']} shards"),
        ("size", f"{size(about['bytes'])}, {about['bytes_per_sample']:.0f} bytes a sample"),
        ("variants", f"{len(about['variants'])}: {', '.join(about['variants'][:12])}"),
        ("grid", f"{about['grid'][0]} x {about['grid'][1]} ids of {about['codebook_size']} ({about['dtype']})"),
        ("codebook", f"{about['codebook_used']} used ({about['codebook_used'] / about['codebook_size']:.1%}), "
                     f"perplexity {about['codebook_perplexity']:.1f}"),
        ("classes", f"{about['num_classes']}" + (", {} to {} samples each".format(*per_class) if per_class else "")),
        ("members", ", ".join(about["members"])),
        *((key, _flat(about[key])) for key in ("tokenizer", "dataset", "encoding") if key in about),
    ]  # fmt: skip
    print(table(rows))
    return 0


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items() if inner not in (None, {}, []))
    text = str(value)
    return text if len(text) != 64 else f"{text[:12]}..."


def _verify(args: argparse.Namespace) -> int:
    from maskgit_core.shards.checks import problems

    wrong = 0
    for line in problems(Path(args.source)):
        print(line, file=sys.stderr)
        wrong += 1
    if wrong:
        print(f"{args.source}: {wrong} problem(s)")
        return 1
    from maskgit_core.shards.reader import TokenShards

    shards = TokenShards(args.source)
    print(
        f"{args.source}: whole; {len(shards):,} samples in {len(shards.manifest['shards'])} shards, all checksums right"
    )
    if args.decode:
        from experiments.training.pictures import write_decoded

        write_decoded(shards, args.decode, args.tokenizer, args.out)
        print(f"{args.out}: the first {min(args.decode, len(shards))} samples, decoded; one row a variant")
    return 0


def _export(args: argparse.Namespace) -> int:
    from maskgit_core.shards.npz import export_npz

    with _bar("exporting") as report:
        count = export_npz(Path(args.source), Path(args.target), report)
    print(f"{args.target}: {count:,} npz files")
    return 0


def _import(args: argparse.Namespace) -> int:
    from maskgit_core.shards.npz import import_npz

    if args.codebook_size is None:
        raise ConfigError("--codebook-size: missing; the npz files do not say how many entries the codebook has")
    with _bar("importing") as report:
        count = import_npz(
            Path(args.source),
            Path(args.target),
            codebook_size=args.codebook_size,
            grid=_grid(args.grid),
            num_classes=args.num_classes,
            report=report,
        )
    print(f"{args.target}: {count:,} samples")
    return 0


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ConfigError(f"--grid: found {text!r}; it must be HEIGHTxWIDTH, for instance 16x16")
    return int(height), int(width)


def _push(args: argparse.Namespace) -> int:
    from maskgit_core.shards.hub import hub, push

    _repository(args.target)
    sent = push(Path(args.source), args.target, hub(), prefix=args.prefix, private=not args.public)
    print(f"{args.target}: whole; {sent} shards sent, the others were there already")
    return 0


def _pull(args: argparse.Namespace) -> int:
    from maskgit_core.shards.hub import hub, pull

    _repository(args.source)
    fetched = pull(args.source, Path(args.target), hub(), prefix=args.prefix, revision=args.revision)
    print(f"{args.target}: whole; {fetched} shards fetched, the others were there already")
    return 0


def _repository(name: str) -> None:
    if name.count("/") != 1 or not all(name.split("/")):
        raise DataError(f"{name}: not the name of a repository; it must be owner/name")


class _bar:  # noqa: N801
    """A progress bar on a terminal; called with the number done."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __enter__(self) -> _bar:
        from experiments.running.progress import Progress

        self._progress = Progress(None, unit="", label=self.label)
        return self

    def __call__(self, done: int) -> None:
        self._progress.update(done - self._progress.done)

    def __exit__(self, *exc: object) -> None:
        self._progress.close()
