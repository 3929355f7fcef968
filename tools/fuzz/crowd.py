"""Many commands on one store at once: `python -m tools.fuzz.crowd [--count 32] [--rounds 3] [--seed 0]`.

A round starts `count` commands (`run` of overlapping requests, `sync`, `gc --delete`, `status`, `verify`, `plan`,
`failures`) within a second, on a store that is empty in the first round and every second one. Wrong is: a traceback,
more than 120 s (they wait for each other), another exit code than 0, a step executed twice, a result that differs from
one made alone, points lost or doubled.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from tools.fuzz.commands import HEAVY, Fork, forked, patience, preload, request, results
from tools.fuzz.kills import points

SCALES = (1, 2, 3)
SLOW = ("numbers.count=8", "numbers.pause_s=0.01")


def commands(store: Path, draw: random.Random, count: int) -> list[list[str]]:
    """The commands to start; the same seed gives the same."""
    at = ["--store", str(store)]
    kinds = {
        "run": lambda: ["run", *request(store, "chain", *SLOW, f"numbers.scale={draw.choice(SCALES)}")],
        "sweep": lambda: ["run", *request(store, "chain", *SLOW, "numbers.scale=1,2,3")],
        "sync": lambda: ["sync", *at],
        "gc": lambda: ["gc", "--delete", "--yes", *at],
        "status": lambda: ["status", *at],
        "verify": lambda: ["verify", "--deep", *at],
        "plan": lambda: ["plan", *request(store, "chain", *SLOW)],
        "failures": lambda: ["failures", *at],
    }
    names = [*kinds, "run", "run", "sync", "gc"]
    return [kinds[names[number] if number < len(names) else draw.choice(names)]() for number in range(count)]


def executed_twice(store: Path) -> list[str]:
    """Steps of which more than one attempt ended well."""
    ends = Counter("/".join(p.parts[-5:-3]) for p in store.glob("*/*/attempts/*/end.json") if '"done"' in p.read_text())
    return [step for step, count in ends.items() if count > 1]


def one_round(store: Path, alone: dict[str, str], draw: random.Random, count: int) -> list[str]:
    """Starts `count` commands at once; what went wrong."""
    chosen = commands(store, draw, count)
    running = []
    for command in chosen:
        running.append(Fork(command))
        time.sleep(draw.random() / count)
    wrong = []
    for command, process in zip(chosen, running, strict=True):
        answer = process.wait(300 * patience())
        shown = " ".join(command[:2])
        wrong += [f"{shown}: {text}" for text in answer.wrong(limit_s=120)]
        if not answer.trace and answer.code:
            wrong.append(f"{shown}: code {answer.code}: {answer.text[-300:]!r}")
    wrong += [f"{step} was executed twice" for step in executed_twice(store)]
    found = results(store)
    wrong += [f"{path} differs" for path, text in found.items() if alone.get(path) != text]
    last = forked("run", *request(store, "chain", *SLOW, "numbers.scale=1,2,3"))
    wrong += [f"afterwards: {text}" for text in last.wrong()] + ([last.text] if last.code else [])
    wrong += [] if results(store) == alone else ["afterwards: the results are not all there"]
    synced = forked("sync", "--store", str(store))
    wrong += [f"sync afterwards: {text}" for text in synced.wrong()] + ([synced.text] if synced.code else [])
    if not points(store):
        wrong.append("MLflow holds nothing")
    return wrong + doubled(store)


def doubled(store: Path) -> list[str]:
    """Points that one MLflow run has twice."""
    with closing(sqlite3.connect(f"file:{store / 'mlflow.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT run_uuid, key, step, count(*) FROM metrics WHERE key NOT LIKE 'system/%' "
                                "GROUP BY run_uuid, key, step HAVING count(*) > 1")  # fmt: skip
        return [f"{key} at step {step} is {count} times in run {run}" for run, key, step, count in rows]


def main() -> int:
    """Runs the rounds; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    preload(*HEAVY)
    draw, bad = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as place:
        alone = Path(place, "alone")
        forked("run", *request(alone, "chain", *SLOW, "numbers.scale=1,2,3"))
        expected, store = results(alone), Path(place, "store")
        for number in range(args.rounds):
            if number and number % 2 == 0:
                shutil.rmtree(store)
            wrong = one_round(store, expected, draw, args.count)
            bad += bool(wrong)
            for line in wrong:
                print(f"round {number}: {line}", flush=True)
    print(f"crowd: seed {args.seed}, {args.rounds} rounds of {args.count} commands at once: {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
