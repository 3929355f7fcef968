"""Declares that all science code of an earlier commit gives the same results as the working tree's.

`python -m tools.earlier_code COMMIT [--but PATH ...] [--moved OLD=NEW ...]` renews
`experiments/store/earlier_code.json`, by which steps that finished before code digests were recorded are known to be
up to date. Git's rename detection says
where a file went; `--moved` says it where a file was split or changed too much, `--but` leaves files out whose results
changed. Steps made by code that is left out are reported as changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping

from experiments.store.code_digests import EARLIER, ROOT, code_digest

#: Where science lay at any time in the past.
PLACES = ("maskgit_core", "experiments/stages", "experiments/components.py", "experiments/running/components.py",
          "experiments/training", "experiments/evaluation")  # fmt: skip


def git(*arguments: str) -> bytes:
    """The output of a git command."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


def present_files(commit: str, moved: Mapping[str, str]) -> dict[str, str]:
    """Every science file of a commit and where it is now ("" where it is gone)."""
    files = git("ls-tree", "-r", "--name-only", commit, "--", *PLACES).decode().split()
    renamed = {}
    for line in git("diff", "-M30%", "-l0", "--name-status", "--diff-filter=R", commit).decode().splitlines():
        _, old, new = line.split("\t")
        renamed[old] = new
    now = {name: moved.get(name, renamed.get(name, name)) for name in files if name.endswith(".py")}
    return {old: new if (ROOT / new).is_file() else "" for old, new in now.items()}


def table(commit: str, but: Iterable[str], moved: Mapping[str, str]) -> dict[str, list[str]]:
    """sha256 of each earlier file -> the code digests of what does its work now."""
    left_out = set(but)
    rows = {}
    for old, new in present_files(commit, moved).items():
        if old not in left_out and new not in left_out:
            sha256 = hashlib.sha256(git("show", f"{commit}:{old}")).hexdigest()
            rows[sha256] = [code_digest(str(ROOT / new))] if new else []
    return dict(sorted(rows.items()))


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--but", nargs="*", default=[], metavar="PATH", help="files (old or new) whose results changed")
    parser.add_argument("--moved", nargs="*", default=[], metavar="OLD=NEW", help="where a file's work is done now")
    args = parser.parse_args()
    rows = table(args.commit, args.but, dict(pair.split("=", 1) for pair in args.moved))
    EARLIER.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{EARLIER.relative_to(ROOT)}: {len(rows)} files of {args.commit}")


if __name__ == "__main__":
    main()
