"""SIGKILL to each step of the quickstart while it works: `python -m tools.fuzz.stage_kills [--count 27] [--seed 0]`.

The quickstart at toy size is made once. Then, for one step after another, its folder is taken away, the same command
makes it again and is killed a random while after the step began; the command is given once more. Wrong is: a traceback,
a second command that does not end well, outputs whose bytes are not those of the undisturbed run (of the report, which
tells of times, only that it is there), another step that is touched, a leftover that stays, damage that
`verify --deep` finds.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from tools.fuzz.commands import Fork, attacked, forked, leftovers
from tools.fuzz.store_files import digests

STEPS = ("train_tokenizer", "reference_statistics", "eval_tokenizer", "cache_tokens", "train", "sample",
         "sample_untrained", "evaluate", "report")  # fmt: skip
REQUEST = ("experiment=quickstart", "toy=true", "launcher=inline", "tracking.ship=false")


class StageDrill:
    """A finished toy quickstart and a copy of it to attack."""

    def __init__(self, place: Path) -> None:
        import torch  # forks need not import it

        torch.set_num_threads(1)
        from experiments.store.documents import Manifest
        from experiments.store.records import records

        store = place / "store"
        self.run, self.root, self.whole = (
            ["run", *REQUEST, f"paths.store={store}"],
            place / "store-toy",
            place / "whole",
        )
        answer = forked(*self.run)
        if answer.code:
            raise SystemExit(f"the quickstart cannot be made: {answer.text}")
        self.root.rename(self.whole)
        self.digests = digests(self.whole)
        (record, *_) = records(self.whole)
        self.folders = {step.name: step.folder for step in record.steps}
        self.seconds = {name: Manifest.needed(self.whole / folder).seconds for name, folder in self.folders.items()}

    def attack(self, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """One kill of this step."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.whole, self.root, symlinks=True)
        folder = self.root / self.folders[name]
        shutil.rmtree(folder)
        process = Fork([*self.run, "--until", name])
        while not (folder / "attempts" / "0001" / "start.json").exists() and time.monotonic() - process.began < 300:
            time.sleep(0.005)
        delay = draw.random() * self.seconds[name]
        time.sleep(delay)
        process.kill()
        first = process.wait()
        again = forked(*self.run, "--until", name)
        wrong = [f"again: {text}" for text in again.wrong(120)]
        if again.code and not again.trace:
            wrong.append(f"again: code {again.code}: {again.text[-300:]!r}")
        found = digests(self.root)
        wrong += [
            f"{step}: other bytes" for step, digest in self.digests.items()
            if found.get(step) != digest and not (step == self.folders["report"] and step in found)
        ]  # fmt: skip
        checked = forked("verify", "--deep", "--store", str(self.root))
        if checked.code:
            wrong.append(f"verify afterwards: {checked.text[-300:]!r}")
        wrong += [f"left behind: {path}" for path in leftovers(folder)]
        return name if first.code < 0 else "too late", [f"after {delay:.2f} s: {line}" for line in wrong]


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    return attacked(__doc__, STEPS, StageDrill)


if __name__ == "__main__":
    raise SystemExit(main())
