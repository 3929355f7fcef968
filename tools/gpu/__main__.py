"""Measures this package on a GPU: one JSON object a line, each section by itself within 90 seconds.

    python -m tools.gpu                     all sections, about ten minutes
    python -m tools.gpu train sample        these alone
    python -m tools.gpu --write             and writes the figures to docs/gpu_<card>.md
    python -m tools.gpu --dry               tiny models on the CPU: shows that every section works, measures nothing

Without a GPU it runs dry. It takes the GPU that MASKGIT_DEVICE names (cuda:1), else the first. What a section lacks (a
second card, memory, time) is said in a line of its own with "skipped"; a section that breaks gives a line with
"failed", the others go on, and the exit code is 1. Two goals are checked, in lines with "reached": training at half of
the card's measured matrix rate, sampling at three times the speed of the original's way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from maskgit_core.devices import bind_device
from tools.gpu import networks, page, sampling, training
from tools.gpu.rig import ROOT, SECTION_S, Figure, Rig, Section


def tests(rig: Rig) -> Iterator[Figure]:
    """(j) The tests marked `gpu`; collected only in a dry run."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    dry = ["--collect-only"] if rig.is_dry else []
    done = subprocess.run([*command, *dry], cwd=ROOT, capture_output=True, text=True, timeout=SECTION_S)
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
    if done.returncode != 0:
        raise RuntimeError(f"pytest ended with code {done.returncode}: {last}")
    yield {"name": "tests", "value": done.returncode, "unit": "exit code", "said": last}


SECTIONS: dict[str, Section] = {
    "train": training.matrix_share,
    "wait": training.data_wait,
    "sample": sampling.speed,
    "encode": networks.encode,
    "ranks": training.two_ranks,
    "decode": networks.decode,
    "features": networks.features,
    "precision": sampling.precision,
    "resume": training.resume,
    "tests": tests,
}


def figures(names: list[str], rig: Rig) -> Iterator[Figure]:
    """The lines of the named sections; one that fails says so and the next goes on."""
    yield rig.about()
    for name in names:
        rig.begin()
        began = time.monotonic()
        try:
            for figure in SECTIONS[name](rig):
                yield {"section": name, **rounded(figure)}
        except Exception as error:  # the other sections are worth having
            yield {"section": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        rig.free()
        yield {"section": name, "name": "seconds", "value": round(time.monotonic() - began, 1), "unit": "s"}


def rounded(figure: Figure) -> Figure:
    """Numbers to five significant digits."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figure.items()}


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process where it names no section."""
    told = {name: " ".join((section.__doc__ or "").split("\n\n")[0].split()) for name, section in SECTIONS.items()}
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections:\n" + "\n".join(f"  {name:<10} {said}" for name, said in told.items()),
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="see below; default: all")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU, even where there is a GPU")
    parser.add_argument("--write", action="store_true", help="also write docs/gpu_<card>.md, to be committed")
    args = parser.parse_args(given)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {sorted(unknown)[0]}; one of {', '.join(SECTIONS)}")
    args.dry |= not torch.cuda.is_available()
    if args.write and args.dry:
        parser.error("--write: a dry run measures nothing; run it where there is a GPU")
    return args


def main() -> int:
    """Prints the lines; 1 where a section failed."""
    args = parsed()
    rig = Rig("cpu" if args.dry else bind_device(), args.dry)
    lines = []
    for figure in figures(args.sections or list(SECTIONS), rig):
        print(json.dumps(figure), flush=True)
        lines.append(figure)
    if args.write:
        print(f"written: {page.write(lines, ROOT / 'docs')}", file=sys.stderr)
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
