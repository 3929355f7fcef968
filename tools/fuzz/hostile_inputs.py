"""Gives hostile files to everything that reads files of others: `python -m tools.fuzz.hostile_inputs`.

`[--count 200] [--seed 0]`: the files of `hostile_files.py` go to the readers of weights, checkpoints, statistics,
samples, token shards and pictures, and to the commands `shards info|verify|import` and `adopt`. Each reader may take a
file or refuse it with one line. Wrong is: any other error, more than 20 s, more than 3 GiB of memory, code of the file
that ran, a file made outside the folder.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from maskgit_core.errors import MaskgitError
from tools.fuzz.commands import LIMIT_S, ask, patience
from tools.fuzz.hostile_files import CANARY, MAKERS

MEMORY = 3 << 30


def readers(path: Path) -> dict[str, Callable[[], object]]:
    """The readers of such a file, by name."""
    from maskgit_core.evaluation.reference_files import holds_statistics, read_statistics
    from maskgit_core.extractors import read_tensors
    from maskgit_core.images.image_sets import open_images
    from maskgit_core.images.pictures import has_readable_header, read_picture
    from maskgit_core.training.checkpoints import load_tensors
    from maskgit_core.weights.pickles import read_state_dict

    def images() -> object:
        found = open_images(path)
        return found.read(range(min(len(found), 4)))

    def shards(verb: str) -> Callable[[], object]:
        return lambda: command("shards", verb, str(path.parent))

    weights: dict[str, Callable[[], object]] = {"state dict": lambda: read_state_dict(path)}
    if path.suffix in (".ckpt", ".pt"):
        return {**weights, "statistics": lambda: read_statistics(path.with_suffix(".pt"), 4),
                "extractor": lambda: read_tensors(path)}  # fmt: skip
    if path.suffix == ".safetensors":
        return {**weights, "checkpoint": lambda: load_tensors(path), "extractor": lambda: read_tensors(path)}
    if path.suffix == ".npz":
        target = path.parent.with_name("imported")
        imported = ("shards", "import", str(path.parent), str(target), "--codebook-size", "16")
        return {"statistics": lambda: holds_statistics(path) and read_statistics(path, 4), "samples": images,
                "import": lambda: command(*imported)}  # fmt: skip
    if path.suffix == ".tar":
        return {"samples": images, "info": shards("info"), "verify": shards("verify")}
    return {"picture": lambda: read_picture(path), "header": lambda: has_readable_header(path),
            "grey": lambda: read_picture(path, 1, upright=True)}  # fmt: skip


class WrongAnswerError(Exception):
    """A command answered as no command may."""


def command(*arguments: str) -> None:
    """Runs a command; raises where its answer is wrong."""
    answer = ask(*arguments)
    if wrong := answer.wrong():
        raise WrongAnswerError("; ".join(wrong))


def attack(folder: Path, name: str, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """One file for all its readers: how they took it, and what went wrong."""
    path = folder / name
    MAKERS[name](path, draw)
    if path.suffix == ".ckpt" and draw.random() < 0.5:
        path = path.rename(path.with_suffix(".pt"))
    counts, wrong = Counter[str](), []
    for reader, call in readers(path).items():
        began = time.monotonic()
        try:
            call()
            counts["taken"] += 1
        except MaskgitError as error:
            counts["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 1500:
                wrong.append(f"{reader}: not one short line: {str(error)[:300]!r}")
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{reader}: {type(error).__name__}: {str(error)[:200]} ({Path(at.filename).name}:{at.lineno})")
        if time.monotonic() - began > LIMIT_S * patience():
            wrong.append(f"{reader}: {time.monotonic() - began:.0f} s")
    return counts, wrong


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("hangs")


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bad = run(args.count, args.seed)
    return 1 if bad else 0


def run(count: int, seed: int) -> int:
    """`count` hostile files; prints what went wrong and returns how often."""
    import torch  # noqa: F401  (its own memory does not count)

    counts: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _too_long)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        with tempfile.TemporaryDirectory() as place:
            os.environ[CANARY] = str(Path(place, "canary"))
            os.environ["MASKGIT_HOME"] = str(Path(place, "home"))
            names = sorted(MAKERS)
            for number in range(count):
                draw, name = random.Random(f"{seed}/{number}"), names[number % len(names)]
                folder = Path(place, str(number), "in", "side")
                folder.mkdir(parents=True)
                signal.alarm(int(120 * patience()))
                taken, wrong = attack(folder, name, draw)
                signal.alarm(0)
                there = {p.name for p in Path(place).iterdir()} - {str(n) for n in range(count)} - {"home"}
                wrong += [f"made {name}" for name in there]
                outside = [p for p in Path(place, str(number)).rglob("*") if p.is_file() and "in" not in p.parts]
                wrong += [f"wrote {p}" for p in outside]
                counts += taken
                counts["wrong"] += len(wrong)
                for line in wrong:
                    print(f"{number} {name}: {line}", flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        os.environ.pop(CANARY, None)
        os.environ.pop("MASKGIT_HOME", None)
    print(f"hostile_inputs: seed {seed}, {count} files: {dict(sorted(counts.items()))}")
    return counts["wrong"]


if __name__ == "__main__":
    raise SystemExit(main())
