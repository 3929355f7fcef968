"""Runs every benchmark and renews `docs/benchmarks.md`.

python -m tools.bench [NAME ...]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

No figure on this page was measured on a GPU: none could be had. `python -m tools.gpu` measures one (10 minutes; dry
without a card).

Each line is measured by `python -m tools.bench.<file>`, both sides in one run, interleaved, at equal settings.
`ratio` > 1 means that ours is better, < 1 that theirs is. Numbers that only have a limit are in tables of their own.
Absolute times depend on the machine; ratios are what to compare. A cell is the median of its rounds with their range.
Ratios of CPU seconds count the work of all threads; those of seconds count what one waits for.

`make bench` renews this page, a section by `python -m tools.bench <file>`; each says when and at which commit it was
measured. Peers: `pip install '.[bench]'`; the PyTorch MaskGIT's own files from a checkout that `MASKGIT_ORIGINAL`
names; the tokenizers' references from checkouts below `MASKGIT_REFERENCES`; snakemake from an environment of its own,
named by `SNAKEMAKE`; mosaicml-streaming, which asks for an older NumPy, by `pip install --no-deps`. What is not there
is left out.
"""


def names() -> list[str]:
    """The benchmarks there are: a file is one by existing."""
    return sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))


def run(name: str) -> list[dict[str, object]]:
    """The figures one benchmark prints."""
    done = subprocess.run([sys.executable, "-m", f"tools.bench.{name}"], capture_output=True, text=True, cwd=ROOT)
    figures = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            figures.append(json.loads(line))
            print(line, flush=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        print(f"{name}: ended with code {done.returncode}: {last[0]}", file=sys.stderr)
    return figures


COMPARED = ("name", "ours", "theirs", "ratio", "unit", "note")
BUDGETED = ("name", "measured", "limit", "unit", "note")


def table(name: str, figures: list[dict[str, object]]) -> str:
    """A section of the page: comparisons with peers, and numbers beside their limits."""
    text = (
        f"\n## {name}\n\n`python -m tools.bench.{name}` ({time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()})\n"
    )
    for columns, key in ((COMPARED, "ours"), (BUDGETED, "limit")):
        rows = [f for f in figures if key in f]
        if rows:
            text += "\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n"
            text += "".join("| " + " | ".join(str(f.get(c, "")) for c in columns) + " |\n" for f in rows)
    return text


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"


def machine() -> str:
    """Processor and Python; nothing that names a host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Python {platform.python_version()}"


def sections() -> dict[str, str]:
    """The page's present sections by benchmark."""
    if not PAGE.exists():
        return {}
    parts = PAGE.read_text().split("\n## ")[1:]
    return {part.splitlines()[0]: f"\n## {part}" for part in parts}


def main() -> None:
    """Runs the named benchmarks (default: all) and rewrites their sections."""
    chosen = sys.argv[1:] or names()
    page = sections()
    for name in chosen:
        figures = run(name)
        if figures:
            page[name] = table(name, figures)
    PAGE.write_text(HEAD + "".join(page[name].rstrip() + "\n" for name in sorted(page)))


if __name__ == "__main__":
    main()
