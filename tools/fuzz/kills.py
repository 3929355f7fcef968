"""Kills commands at random moments and asks whether anything was lost: `python -m tools.fuzz.kills`.

`[--count 100] [--seed 0]`: SIGKILL to `run`, `sync` (into a database that is there), `gc --delete`, `adopt`, the first
shipping of a store, and `verify --repair`, in turn, each a random while after its begin. Then the same command is given
again. Wrong is: a traceback, more than 20 s, a second command that does not end well, a result that differs from the
undisturbed one, a finished step that is gone, a point that MLflow has twice or not at all, a leftover that stays.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from pathlib import Path

from tools.fuzz.commands import LIMIT_S, Fork, attacked, forked, leftovers, patience, request, results

ATTACKS = ("run", "gc", "adopt", "repair", "sync", "first ship")
SLOW = ("numbers.count=12", "numbers.pause_s=0.01")


def points(store: Path) -> dict[tuple[str, str, int], list[float]]:
    """The points in MLflow: (step's name, metric, step) -> values; an exactly-once history has one each."""
    found: dict[tuple[str, str, int], list[float]] = {}
    with closing(sqlite3.connect(f"file:{store / 'mlflow.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT runs.name, metrics.key, metrics.step, metrics.value FROM metrics "
                                "JOIN runs USING (run_uuid) WHERE metrics.key NOT LIKE 'system/%'")  # fmt: skip
        for name, key, step, value in rows:
            found.setdefault((name, key, step), []).append(value)
    return found


def manifests(store: Path) -> dict[str, str]:
    """Step -> its done mark, also of steps in the trash."""
    places = [*store.glob("*/*/manifest.json"), *store.glob(".trash/*/*/*/manifest.json")]
    return {"/".join(p.parts[-3:-1]): p.read_text() for p in places}


class Drill:
    """Stores to attack, made once, and what an undisturbed command leaves of each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = place / "store"
        self.empty = place / "empty"
        self.empty.mkdir()
        self.usual: dict[str, float] = {}
        self.expected: dict[str, object] = {}

    @cached_property
    def made(self) -> Path:
        """A finished run."""
        return self._made("made", lambda s: [["run", *request(s, "chain", *SLOW)]])

    @cached_property
    def shipped(self) -> Path:
        """One that MLflow knows and another that it does not."""
        more = request(self.place / "shipped", "chain", *SLOW, "numbers.scale=2")
        return self._copied("shipped", self.made, lambda s: [["sync", "--store", str(s)], ["run", *more]])

    @cached_property
    def dropped(self) -> Path:
        """A run that is wanted and two that were given up."""
        runs = [["run", *request(self.place / "dropped", "chain", *SLOW, f"numbers.scale={n}")] for n in (3, 4)]
        return self._copied("dropped", self.made, lambda s: [
            runs[0], ["gc", "--drop", "chain", "--store", str(s)], runs[1]])  # fmt: skip

    @cached_property
    def damaged(self) -> Path:
        """A finished run whose done marks are cut short."""
        place = self._copied("damaged", self.made, lambda s: [])
        for path in place.glob("*/*/manifest.json"):
            path.write_text(path.read_text()[:-20])
        return place

    def _made(self, name: str, commands: Callable[[Path], list[list[str]]]) -> Path:
        for command in commands(self.place / name):
            answer = forked(*command)
            if answer.code:
                raise SystemExit(f"the drill cannot be prepared: {' '.join(command)}\n{answer.text}")
        return self.place / name

    def _copied(self, name: str, source: Path, commands: Callable[[Path], list[list[str]]]) -> Path:
        shutil.copytree(source, self.place / name, symlinks=True)
        return self._made(name, commands)

    # -- what is killed ----------------------------------------------------------------------------------------------
    def command(self, name: str) -> tuple[Path, list[str]]:
        """The store that an attack begins with and the command that is killed."""
        at = ["--store", str(self.store)]
        asked = request(self.store, "chain", *SLOW)
        makers: dict[str, Callable[[], tuple[Path, list[str]]]] = {
            "run": lambda: (self.empty, ["run", *asked]),
            "sync": lambda: (self.shipped, ["sync", *at]),
            "gc": lambda: (self.dropped, ["gc", "--delete", "--yes", *at]),
            "adopt": lambda: (self.empty, ["adopt", str(next(self.made.glob("numbers/*"))), "numbers", *asked]),
            "first ship": lambda: (self.made, ["sync", *at]),
            "repair": lambda: (self.damaged, ["verify", "--repair", *at]),
            "status": lambda: (self.made, ["status", *at]),
            "verify": lambda: (self.made, ["verify", *at]),
        }
        return makers[name]()

    def fresh(self, source: Path) -> None:
        """The store as it is before the command."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(source, self.store, symlinks=True)

    def undisturbed(self, name: str) -> float:
        """Seconds that the command takes when nobody kills it; what it leaves is remembered."""
        if name not in self.usual:
            source, command = self.command(name)
            self.fresh(source)
            self.usual[name] = forked(*command).seconds
            self.expected[name] = self.state(name)
        return self.usual[name]

    def state(self, name: str) -> object:
        """Everything that must be the same after a kill and a second try."""
        if name in ("sync", "first ship"):
            return points(self.store)
        if name == "gc":
            return sorted(manifests(self.store).values()), sorted(
                p.parent.name for p in self.store.glob("*/*/request.json")
            )
        return results(self.store)

    def attack(self, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """A kill of this command at a random moment; one that comes too late is tried again sooner."""
        delay = draw.random() * self.undisturbed(name)
        in_time, wrong = self.kill(name, delay)
        for _ in range(4):  # it was over before: the machine is less busy than it was
            if not in_time and not wrong:
                delay /= 2
                in_time, wrong = self.kill(name, delay)
        return name if in_time else "too late", [f"after {delay:.3f} s: {line}" for line in wrong]

    def kill(self, name: str, delay: float, number: int = signal.SIGKILL) -> tuple[bool, list[str]]:
        """One attack with this signal: whether it came in time, and what went wrong."""
        source, command = self.command(name)
        self.fresh(source)
        before = manifests(self.store)
        process = Fork(command)
        time.sleep(delay)
        process.kill(number)
        sent = time.monotonic()
        first = process.wait()
        slow = time.monotonic() - sent
        done = manifests(self.store)
        wrong = [f"killed command: {text}" for text in first.wrong() if first.code >= 0 or first.trace]
        if slow > LIMIT_S * patience():
            wrong.append(f"ended {slow:.0f} s after the signal")
        wrong += [f"{step} is gone" for step in before if step not in done and name != "repair"]
        if name == "repair":
            for path in self.store.glob("*/*/manifest.json.damaged"):
                done.setdefault("/".join(path.parts[-3:-1]), "")
            wrong += [f"{step} is gone" for step in before if step not in done]
        again = forked(*command)
        took_it = name == "adopt" and again.code == 2 and "is done already" in again.text
        wrong += [f"again: {text}" for text in again.wrong()]
        if again.code and not took_it:
            wrong.append(f"again: code {again.code}: {again.text[-300:]!r}")
        if (now := self.state(name)) != self.expected[name]:
            wrong.append(f"differs: {str(now)[:200]} instead of {str(self.expected[name])[:200]}")
        for verb, *more in (["status"], ["verify", "--deep"], ["gc"]):
            answer = forked(verb, *more, "--store", str(self.store))
            wrong += [f"{verb} afterwards: {text}" for text in answer.wrong()]
            if answer.code:
                wrong.append(f"{verb} afterwards: code {answer.code}: {answer.text[-300:]!r}")
        for path in leftovers(self.store):  # an hour later
            os.utime(self.store / path, (time.time() - 7200,) * 2)
        answer = forked("gc", "--delete", "--yes", "--store", str(self.store))
        wrong += [f"gc --delete afterwards: {text}" for text in answer.wrong()]
        wrong += [f"left behind: {path}" for path in leftovers(self.store)]
        return first.code < 0 or first.code in (130, 143), wrong


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    return attacked(__doc__, ATTACKS, Drill)


if __name__ == "__main__":
    raise SystemExit(main())
