"""Makes the disk below a store fail and asks whether anything wrong is believed: `python -m tools.fuzz.faults`.

`[--count 100] [--seed 0]`: EIO, ENOSPC, ESTALE, EDQUOT or EROFS at a random write, fsync, rename, open, link, mkdir or
read below the store, once or from there on, while a command runs (`run`, `sync`, `gc --delete`, `adopt`, `status`,
`verify`); `faulty_disk.c` is compiled and preloaded for it. Then the disk is well again and the command is given once
more. Wrong is: a traceback, more than 20 s, a step that counts as done with other results than the undisturbed ones, a
finished step that is gone, a second command that does not end well, points that MLflow lacks or has twice.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tools.fuzz.commands import ROOT, Answer, attacked, forked, patience, results
from tools.fuzz.kills import Drill, manifests

SOURCE = Path(__file__).with_name("faulty_disk.c")
ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EDQUOT, errno.EROFS)
CALLS = "write,fsync,rename,open,link,mkdir,read"
ATTACKS = ("run", "gc", "adopt", "repair", "status", "verify", "sync", "first ship")


def compiled(place: Path) -> Path | None:
    """The library to preload; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = place / "faulty_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


class FaultDrill(Drill):
    """The stores of the kills, on a disk that fails."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.calls: dict[str, Counter[str]] = {}

    def undisturbed(self, name: str) -> float:
        """Also counts the calls that may fail."""
        if name not in self.usual:
            super().undisturbed(name)
            source, command = self.command(name)
            self.fresh(source)
            told = self.place / "calls.txt"
            told.unlink(missing_ok=True)
            forked(*command, environment={"FAULT_UNDER": str(self.store), "FAULT_CALLS": CALLS, "FAULT_ERRNO": "-1",
                                          "FAULT_TIMES": "0", "FAULT_TOLD": str(told)})  # fmt: skip
            lines = told.read_text().splitlines() if told.exists() else ["read"]
            self.calls[name] = Counter(line.partition(" ")[0] for line in lines)
        return self.usual[name]

    def attack(self, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """One fault: what failed (nothing where the command was over before), and what went wrong."""
        source, command = self.command(name)
        self.undisturbed(name)
        self.fresh(source)
        before = manifests(self.store)
        told = self.place / "told.txt"
        told.unlink(missing_ok=True)
        calls = self.calls[name]
        kind = draw.choice([*sorted(calls), "any"])
        chosen, most = (",".join(calls), sum(calls.values())) if kind == "any" else (kind, calls[kind])
        fault = {"FAULT_UNDER": str(self.store), "FAULT_CALLS": chosen, "FAULT_ERRNO": str(draw.choice(ERRORS)),
                 "FAULT_AT": str(draw.randint(1, most)), "FAULT_TIMES": str(draw.choice((0, 1, 1, 3))),
                 "FAULT_TOLD": str(told)}  # fmt: skip
        first = forked(*command, environment=fault, limit_s=60 * patience())
        happened = told.read_text().splitlines() if told.exists() else []
        wrong = [f"with the fault: {text}" for text in first.wrong()]
        wrong += self.believed(name, before, "with the fault")
        again = forked(*command, limit_s=60 * patience())
        wrong += self.judged(name, again)
        if wrong:
            shown = happened[0].replace(str(self.store), "STORE") if happened else "no fault"
            wrong = [
                f"{line} ({os.strerror(int(fault['FAULT_ERRNO']))} at {shown}, {len(happened)} times)" for line in wrong
            ]
        return (f"{happened[0].split()[0]} fault" if happened else "no fault"), wrong

    def believed(self, name: str, before: dict[str, str], when: str) -> list[str]:
        """Finished steps that are gone, and results that differ."""
        done, right = manifests(self.store), results(self.made)
        wrong = [] if name == "repair" else [f"{when}: {step} is gone" for step in before if step not in done]
        if name in ("run", "adopt"):
            found = results(self.store)
            wrong += [f"{when}: {path} differs" for path in found if found[path] != right.get(path)]
        return wrong

    def judged(self, name: str, again: Answer) -> list[str]:
        """The faults of the second command."""
        wrong = [f"again: {text}" for text in again.wrong()]
        took_it = name == "adopt" and again.code == 2 and "is done already" in again.text
        if again.code and not took_it:
            wrong.append(f"again: code {again.code}: {again.text[-300:]!r}")
        elif name not in ("status", "verify") and self.state(name) != self.expected[name]:
            wrong.append(f"again: differs: {str(self.state(name))[:200]}")
        answer = forked("verify", "--deep", "--store", str(self.store))
        if answer.code or answer.trace:
            wrong.append(f"verify afterwards: {answer.text[-300:]!r}")
        return wrong


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    if "FAULT_LIBRARY" not in os.environ:
        with tempfile.TemporaryDirectory() as place:
            library = compiled(Path(place))
            if library is None:
                raise SystemExit("faults: needs gcc")
            environment = {**os.environ, "FAULT_LIBRARY": str(library), "LD_PRELOAD": str(library),
                           "PYTHONPATH": str(ROOT)}  # fmt: skip
            call = [sys.executable, "-m", "tools.fuzz.faults", *sys.argv[1:]]
            return subprocess.run(call, env=environment, check=False).returncode
    return attacked(__doc__, ATTACKS, FaultDrill)


if __name__ == "__main__":
    raise SystemExit(main())
