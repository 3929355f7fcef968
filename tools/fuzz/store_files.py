"""Mutates every file of a finished store, one at a time, and asks the commands what they make of it.

`python -m tools.fuzz.store_files [--count 500] [--seed 0]`. For every mutation: `status`, `plan`, `run`, `compare`,
`verify --deep`, then `run` again. Wrong is: a traceback, more than 20 s, a step that is never done, a result that
differs from the undisturbed one although no command has named the damage. Prints a line for each wrong outcome.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tools.fuzz.commands import LAB, ask, results

REQUEST = ["experiment=chain", "launcher=inline", "tracking.ship=false", "--config-dir", str(LAB)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(max(len(data), 1))
    return data[:place] + bytes([(data[place] if data else 0) ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _digit(data: bytes, rng: random.Random) -> bytes:
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return _flip(data, rng)
    place = rng.choice(places)
    return data[:place] + str(rng.randrange(10)).encode() + data[place + 1 :]


def _type(data: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return _flip(data, rng)
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        value[key] = rng.choice([None, [], {}, "text", -1, 1e300, True, [[]], {"a": None}])
    return json.dumps(value).encode()


def _without(data: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
        del value[rng.choice(sorted(value))]
        return json.dumps(value).encode()
    except (ValueError, TypeError, IndexError, KeyError):
        return data[: len(data) // 3]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": _flip,
    "digit": _digit,
    "truncate": lambda data, rng: data[: rng.randrange(max(len(data), 1))],
    "empty": lambda data, rng: b"",
    "null": lambda data, rng: b"null",
    "list": lambda data, rng: b"[]",
    "number": lambda data, rng: b"5",
    "zeros": lambda data, rng: b"\0" * len(data),
    "nan": lambda data, rng: b'{"time": NaN, "attempt": 1e999}',
    "deep": lambda data, rng: b"[" * 100_000,
    "digits": lambda data, rng: b'{"time": ' + b"9" * 5000 + b"}",
    "type": _type,
    "without": _without,
    "latin": lambda data, rng: b"\xff\xfe" + data,
}


def attack(made: Path, store: Path, target: Path, name: str, rng: random.Random) -> tuple[str, list[str]]:
    """One mutation: how it was taken (`named`, `harmless`), and what went wrong."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(made, store, symlinks=True)
    path = store / target
    before, info = path.read_bytes(), path.stat()
    after = MUTATIONS[name](before, rng)
    path.write_bytes(after)
    if rng.random() < 0.5:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    asked = [*REQUEST, f"paths.store={store}"]
    at = ["--store", str(store)]
    answers = {
        "status": ask("status", *at),
        "verify": ask("verify", "--deep", *at),
        "plan": ask("plan", *asked),
        "gc": ask("gc", *at),
        "run": ask("run", *asked),
        "redo": ask("run", *asked, "--redo", "total"),
        "again": ask("run", *asked),
    }
    named = any(target.name in answer.text for answer in answers.values())
    wrong = [f"{verb}: {text}" for verb, answer in answers.items() for text in answer.wrong()]
    if answers["again"].code not in (0, 2) or (answers["again"].code == 2 and not named):
        wrong.append(f"again: code {answers['again'].code} and {target.name} is not named")
    same = results(store) == results(made)
    if answers["again"].code == 0 and not same and not named:
        wrong.append("silently another result")
    return ("named" if named else "harmless" if after == before or same else "other"), wrong


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        made, store = Path(place, "made"), Path(place, "store")
        asked = ask("run", *REQUEST, f"paths.store={made}")
        if asked.code:
            print(asked.text)
            return 1
        targets = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file() and not p.is_symlink())
        for number in range(args.count):
            target = targets[number % len(targets)]
            name = rng.choice(sorted(MUTATIONS))
            kind, wrong = attack(made, store, target, name, rng)
            counts[kind] += 1
            counts["wrong"] += bool(wrong)
            for line in wrong:
                print(f"{number} {target} {name}: {line}", flush=True)
    print(
        f"store_files: seed {args.seed}, {args.count} mutations of {len(targets)} files: {dict(sorted(counts.items()))}"
    )
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
