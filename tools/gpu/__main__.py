"""Measures this package on a GPU: one JSON object a line, each section by itself within 90 seconds.

    python -m tools.gpu [SECTION ...] [--dry]

Without a GPU it runs dry: tiny models on the CPU, which shows that every section works and measures nothing. What a
section lacks (a second card, time) is said in a line of its own. Two goals are checked: training at half of the card's
measured matrix rate, sampling at three times the speed of the original's way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from tools.gpu import networks, sampling, training
from tools.gpu.rig import ROOT, SECTION_S, Figure, Rig, Section


def tests(rig: Rig) -> Iterator[Figure]:
    """(j) The tests marked `gpu`; collected only in a dry run."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    dry = ["--collect-only"] if rig.is_dry else []
    done = subprocess.run([*command, *dry], cwd=ROOT, capture_output=True, text=True, timeout=SECTION_S)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
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
                yield {"section": name, **figure}
        except Exception as error:  # the other sections are worth having
            yield {"section": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if rig.device != "cpu":
            torch.cuda.empty_cache()
        yield {"section": name, "name": "seconds", "value": round(time.monotonic() - began, 1), "unit": "s"}


def rounded(figure: Figure) -> Figure:
    """Numbers to five significant digits."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figure.items()}


def main() -> int:
    """Prints the lines; 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU, even where there is a GPU")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {sorted(unknown)[0]}; one of {', '.join(SECTIONS)}")
    is_dry = args.dry or not torch.cuda.is_available()
    has_failed = False
    for figure in figures(args.sections or list(SECTIONS), Rig("cpu" if is_dry else "cuda:0", is_dry)):
        has_failed |= "failed" in figure
        print(json.dumps(rounded(figure)), flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
