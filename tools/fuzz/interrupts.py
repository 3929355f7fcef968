"""Ctrl-C and TERM at random moments of commands that read, ship, delete and search: `python -m tools.fuzz.interrupts`.

`[--count 100] [--seed 0]`: SIGINT or SIGTERM to `run`, `gc --delete`, `adopt`, `verify --repair`, `verify --deep`,
`status`, `status --html`, `plan`, `failures`, `search`, `sync` and the first shipping, in turn; then the same
command again and what `tools.fuzz.kills` asks afterwards. Wrong is what is wrong there, and more than 20 s between the
signal and the end.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

from tools.fuzz.commands import LAB, attacked, request
from tools.fuzz.kills import SLOW, Drill

ATTACKS = ("run", "gc", "adopt", "repair", "verify deep", "status", "html", "plan", "failures", "search", "sync",
           "first ship")  # fmt: skip


class InterruptDrill(Drill):
    """The stores of the kills; signals that a command may answer."""

    def command(self, name: str) -> tuple[Path, list[str]]:
        """The store that an attack begins with and the command that is interrupted."""
        at = ["--store", str(self.store)]
        search = ["tuned", "launcher=inline", "tracking.ship=false", f"paths.store={self.store}", "search.trials=2",
                  "--config-dir", str(LAB)]  # fmt: skip
        makers: dict[str, Callable[[], tuple[Path, list[str]]]] = {
            "verify deep": lambda: (self.made, ["verify", "--deep", *at]),
            "html": lambda: (self.made, ["status", "chain", "--html", str(self.place / "page.html"), *at]),
            "plan": lambda: (self.made, ["plan", *request(self.store, "chain", *SLOW, "numbers.scale=1,2,3")]),
            "failures": lambda: (self.made, ["failures", *at]),
            "search": lambda: (self.empty, ["search", *search]),
        }
        return makers[name]() if name in makers else super().command(name)

    def attack(self, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """One signal at a random moment."""
        delay = draw.random() * self.undisturbed(name)
        number = draw.choice((signal.SIGINT, signal.SIGTERM))
        in_time, wrong = self.kill(name, delay, number)
        return name if in_time else "too late", [f"{number.name} after {delay:.3f} s: {line}" for line in wrong]


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    return attacked(__doc__, ATTACKS, InterruptDrill)


if __name__ == "__main__":
    raise SystemExit(main())
