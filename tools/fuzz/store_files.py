"""Mutates every file of a store, one at a time, and asks the commands what they make of it.

`python -m tools.fuzz.store_files [--store chain|quickstart|training] [--count 500] [--seed 0]`. `chain` is a finished
toy of two steps with its `mlflow.db`, `quickstart` the quickstart at toy size (token shards, safetensors, samples),
`training` the same killed in its training, with checkpoints. For every mutation: `status`, `verify --deep`, two others
that read, `plan`, `gc`, `run`, `run --redo`, `run`, and `sync` where MLflow or a journal is meant. Wrong is: a
traceback, more than 20 s, a step that is never done, a result or a point in MLflow that differs although no command has
named the damage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.fuzz.commands import LAB, Answer, Fork, ask, composed_once
from tools.fuzz.kills import points

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
    "twice": lambda data, rng: data + data,
}


def _of_another(path: Path) -> None:
    """The first file of the store with its name, or at least with its ending, from another folder."""
    store = next(folder for folder in path.parents if (folder / "pipelines").is_dir())
    same = [p for pattern in (path.name, f"*{path.suffix}") for p in sorted(store.rglob(pattern)) if p.is_file()]
    if same:
        shutil.copy(same[0], path)


#: What may stand in a file's place, or nothing at all.
PLACES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "another's": _of_another,
}
#: Further commands that read a store; two are asked at each mutation.
READERS = (("status", "--json"), ("compare", "experiment=chain"), ("failures",), ("logs", "total"), ("doctor",),
           ("reproduce", "total"), ("gc", "--drop", "nosuch"))  # fmt: skip


class Target:
    """A store to attack and the commands that are asked about it.

    Args:
        place: an empty folder.
        request: arguments of the experiment, without the store.
        redone: the step that is run again with `--redo`; None: none.
        unfinished: arguments of a run that is killed as soon as a training has a checkpoint; None: all is finished.
    """

    def __init__(
        self, place: Path, request: Sequence[str], redone: str | None = None, unfinished: Sequence[str] | None = None
    ) -> None:
        self.made, self.store, self.whole = place / "made", place / "store", place / "whole"
        self.request, self.redone, self.tail = list(request), redone, ""
        if any(word == "toy=true" for word in request):
            self.tail = "-toy"
        if unfinished is not None:
            self._stop_at_checkpoint([*unfinished, f"paths.store={self.store}"])
        else:
            self._told(ask("run", *self.asked()))
            self._told(ask("sync", *self.at()))
        self.root.rename(self.made)
        shutil.copytree(self.made, self.root, symlinks=True)
        self._told(ask("run", *self.asked()))
        shutil.copytree(self.root, self.whole, symlinks=True)
        self.files = sorted(
            p.relative_to(self.made)
            for p in self.made.rglob("*")
            if p.is_file() and not p.is_symlink() and ".toy" not in p.parts  # pictures: data, of which it was made
        )

    @property
    def root(self) -> Path:
        """The store under attack."""
        return self.store.with_name(self.store.name + self.tail)

    def asked(self) -> list[str]:
        """The request, in this store."""
        return [*self.request, f"paths.store={self.store}"]

    def at(self) -> list[str]:
        """For commands that know nothing of requests."""
        return ["--store", str(self.root)]

    def _told(self, answer: Answer) -> None:
        if answer.code:
            raise SystemExit(f"the store cannot be made: {answer.text}")

    def _stop_at_checkpoint(self, arguments: Sequence[str]) -> None:
        process = Fork(["run", *arguments])
        while not list(self.root.glob("train/*/attempts/*/checkpoints/[!.]*")):
            time.sleep(0.005)
            if time.monotonic() - process.began > 300:
                raise SystemExit("the training has no checkpoint after five minutes")
        process.kill()
        process.wait()

    def results(self) -> dict[str, str]:
        """The digest of each finished step, by its folder."""
        return digests(self.root)

    def attack(self, file: Path, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """One mutation: how it was taken (`named`, `harmless`), and what went wrong."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.made, self.root, symlinks=True)
        path = self.root / file
        before, info = path.read_bytes(), path.stat()
        after = MUTATIONS[name](before, draw) if name in MUTATIONS else None
        if after is None:
            path.unlink()
            PLACES[name](path)
        else:
            path.write_bytes(after)
            if draw.random() < 0.5:
                os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        answers = {"status": ask("status", *self.at()), "verify": ask("verify", "--deep", *self.at())}
        for verb in draw.sample(READERS, 2):
            answers[" ".join(verb)] = ask(*verb, *self.at())
        if file.name == "mlflow.db" or file.suffix == ".jsonl":
            answers["sync"] = ask("sync", *self.at())
        answers |= {"plan": ask("plan", *self.asked()), "gc": ask("gc", *self.at()), "run": ask("run", *self.asked())}
        if self.redone:
            answers["redo"] = ask("run", *self.asked(), "--redo", self.redone)
            answers["again"] = ask("run", *self.asked())
        return self._judged(file, answers, before == after)

    def _right_points(self) -> bool:
        if not (self.whole / "mlflow.db").is_file():
            return True
        found, right = points(self.root), points(self.whole)
        return all(found.get(key) == value for key, value in right.items())

    def _judged(self, file: Path, answers: dict[str, Answer], same_bytes: bool) -> tuple[str, list[str]]:
        named = any(file.name in answer.text for answer in answers.values())
        wrong = [f"{verb}: {text}" for verb, answer in answers.items() for text in answer.wrong()]
        last = list(answers.values())[-1]
        if last.code not in (0, 2) or (last.code == 2 and not named):
            wrong.append(f"at last: code {last.code} and {file.name} is not named: {last.text[-200:]!r}")
        same = self.results() == digests(self.whole)
        if last.code == 0 and not same and not named:
            wrong.append("silently another result")
        if "sync" in answers and not named and (self.root / "mlflow.db").is_file() and not self._right_points():
            wrong.append("silently other points in MLflow")
        if last.code == 0 and (check := ask("verify", "--deep", *self.at())).code and file.name not in check.text:
            wrong.append(f"verify at last: {check.text[-300:]!r}")
        return ("named" if named else "harmless" if same_bytes or same else "other"), wrong


def digests(store: Path) -> dict[str, str]:
    """The digest of each finished step (its outputs and facts), by its folder."""
    from experiments.store.documents import Manifest
    from maskgit_core.errors import ArtifactError

    found = {}
    for path in sorted(store.glob("*/*/manifest.json")):
        with contextlib.suppress(ArtifactError):
            manifest = Manifest.read(path.parent)
            found[str(path.parent.relative_to(store))] = manifest.digest if manifest else ""
    return found


TOY = ["experiment=quickstart", "toy=true", "--until", "sample", "tracking.ship=false"]
TRAIN = [*TOY[:3], "train", TOY[4], "train.num_train_steps=8", "train.checkpoint_every=2"]
STORES: dict[str, Callable[[Path], Target]] = {
    "chain": lambda place: Target(place, REQUEST, redone="total"),
    "quickstart": lambda place: Target(place, TOY),
    "training": lambda place: Target(place, TRAIN, unfinished=TRAIN),
}


def run(store: str, count: int, seed: int) -> int:
    """`count` mutations over the files of a store; prints what went wrong and returns how often."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, composed_once():
        target = STORES[store](Path(place))
        order = list(target.files)
        random.Random(seed).shuffle(order)
        for number in range(count):
            draw, file = random.Random(f"{seed}/{number}"), order[number % len(order)]
            name = draw.choice(sorted([*MUTATIONS, *PLACES]))
            kind, wrong = target.attack(file, name, draw)
            counts[kind] += 1
            counts["wrong"] += bool(wrong)
            for line in wrong:
                print(f"{number} {file} {name}: {line}", flush=True)
    print(f"store_files: {store}, seed {seed}, {count} mutations of {len(order)} files: {dict(sorted(counts.items()))}")
    return counts["wrong"]


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORES, default="chain")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return 1 if run(args.store, args.count, args.seed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
