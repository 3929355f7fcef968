"""Asks for mutated things: overrides, config files and data layouts, from a seed.

`python -m tools.mutated_requests [--seed 0] [--overrides 240] [--files 60] [--layouts 60]`

Every request must be planned, or refused by one line within `LIMIT_S` of CPU time. Requests over mutated layouts
(folders of pictures, ImageNet's forms, files of statistics and samples) are planned and then run, one step: none may
fail for a reason that `plan` accepted and `run` did not refuse before it began. Exits 1 where one did; each violation
is printed with the request that shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.config.compose import CONF, group_names, groups
from experiments.config.schema.signatures import read_component, read_stage
from experiments.config.schema.sources import FOLDERS
from experiments.planning.pipeline import build
from maskgit_core.errors import MaskgitError
from tools.mutated_layouts import AFTER_HEADER, ilsvrc, plain, spoil, statistics

LIMIT_S = 5.0
VALUES = ("0", "-1", "1", "2", "3", "4", "8", "10", "16", "100", "0.1", "0.5", "1e-4", "false", "2.0",
          "1e9", "1e400", ".nan", "nan", "inf", "-inf", "null", "true", "''", "x", "[]",
          "[1,2]", "[[1],[2]]", "{}", "{a:1}", "{name:x}", "{name:halton}", "1,2", "range(0,3)", "range(0,1e9)",
          "range(0,1,0)", "glob(*)", "shuffle(1,2)", "choice(1,2)", "interval(0,1)", "${paths.store}", "${nowhere}",
          "'${'", "'${train.seed}'", "é", "'a\\nb'", "'\x1b[31m'", "9" * 4400, "9" * 30, "???", "@1", "train@5", "../x",
          "/dev/null", "/", "*", "a=b", "sort(3,2,1)", "float(1)", "int(2.5)", "str(3)", "extend_list(1)")  # fmt: skip


class Requests:
    """Mutated command lines.

    Args:
        draw: the random numbers that they are functions of.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.experiments = group_names("experiment")
        stages = [p.stem for p in (CONF.parent / "experiments" / "stages").glob("*.py") if not p.stem.startswith("_")]
        self.keys = [f"{s}.{name}" for s in sorted(stages) for name in read_stage(f"experiments.stages.{s}", s).params]
        self.keys += [f"resources.{s}.{k}" for s in sorted(stages) for k in ("ranks", "mem_gb", "num_tasks")]
        self.keys += [f"{group}.{name}" for group, names in self._options().items() for name in names]
        self.keys += ["paths.store", "paths", "tracking.uri", "tracking.ship", "launcher.name", "plugins", "sweep",
                      "sweep.grid", "sweep.list", "pipeline", "pipeline.steps", "pipeline.steps.train.needs",
                      "pipeline.optional", "description", "name", "model", "sampler.num_steps", "dataset.root", "seed",
                      "toy", "hydra.run.dir", "train.model.dim", "train", "resources", "a.b.c", ""]  # fmt: skip

    def _options(self) -> dict[str, list[str]]:
        """Every option of every component, by its group."""
        found: dict[str, list[str]] = {}
        for base, folder in FOLDERS.items():
            for path in sorted((CONF.parent / "maskgit_core" / folder).glob("*.py")):
                if not path.stem.startswith("_") and base in ("Sampler", "Model", "Tokenizer", "Dataset"):
                    names = read_component(f"maskgit_core.{folder}.{path.stem}", base, base).params
                    found.setdefault(base.lower(), []).extend(n for n in names if n not in found.get(base.lower(), []))
        return found

    def overrides(self) -> list[str]:
        """An experiment with one or two mutated keys."""
        experiment = self.draw.choice(self.experiments)
        return [f"experiment={experiment}", *(self._one() for _ in range(self.draw.choice((1, 1, 2))))]

    def _one(self) -> str:
        draw, key = self.draw, self.draw.choice(self.keys)
        kind = draw.random()
        if kind < 0.1:
            return f"~{key}"
        if kind < 0.2:
            group = draw.choice(groups())
            return f"{group}={draw.choice([*group_names(group), 'nowhere', *VALUES])}"
        if kind < 0.35 and len(key) > 2:  # a slip of the finger
            at = draw.randrange(len(key) - 1)
            key = draw.choice((key[:at] + key[at + 1 :], key[: at + 1] + key[at:], f"{key}.x", key.upper()))
        sign = draw.choice(("", "", "", "+", "++"))
        return f"{sign}{key}={draw.choice(VALUES)}"

    def file(self, folder: Path) -> list[str]:
        """An experiment's file of which a part was put in another's place, or a line spoilt."""
        draw = self.draw
        text = (CONF / "experiment" / f"{draw.choice(self.experiments)}.yaml").read_text()
        if draw.random() < 0.5:
            lines = text.splitlines()
            at = draw.randrange(1, len(lines))
            lines[at] = draw.choice(("", "\t" + lines[at], lines[at] + ":", "- x", "a: *b", "? [x]", lines[at][2:],
                                     f"{lines[at]} &a", "<<: 5", "\x07", "a: !!python/object:os.system x"))  # fmt: skip
            text = "\n".join(lines)
        else:
            tree = yaml.safe_load(text)
            place = tree
            while isinstance(place, dict) and place:
                key = draw.choice(sorted(map(str, place)))
                inner = place.get(key)
                if not isinstance(inner, dict) or not inner or draw.random() < 0.4:
                    place[key] = draw.choice((5, "x", None, [], [1], {}, {"a": 1}, float("nan"), True, "${nowhere}"))
                    break
                place = inner
            text = "# @package _global_\n" + yaml.safe_dump(tree, sort_keys=False)
        name = f"mutated{draw.randrange(10**9)}"
        (folder / "experiment").mkdir(parents=True, exist_ok=True)
        (folder / "experiment" / f"{name}.yaml").write_text(text)
        return [f"experiment={name}"]


# -- checks -----------------------------------------------------------------------------------------------------------
def planned(request: Sequence[str], dirs: Sequence[Path]) -> tuple[str, str]:
    """`accepted`, `refused` or a violation's name; and what was said."""
    began = time.process_time()
    try:
        build([*request, *([] if any("paths" in r for r in request) else ["paths.store=/nonexistent/store"])], dirs,
              lambda key, value, mark: "0" * 64)  # fmt: skip
        outcome, said = "accepted", ""
    except MaskgitError as error:
        outcome, said = "refused", str(error)
        if "\n" in said or not said or len(said) > 1500:
            outcome = "not one short line"
    except (Exception, SystemExit):
        outcome, said = "traceback", traceback.format_exc()[-600:]
    if time.process_time() - began > LIMIT_S:
        outcome, said = "too slow", f"{time.process_time() - began:.1f} s of CPU time"
    return outcome, said


def run(request: Sequence[str]) -> tuple[str, str]:
    """The same of a real run: `failed late` where a step failed."""
    from experiments.cli import main as maskgit

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = maskgit(["run", *request])
    except BaseException:
        return "traceback", traceback.format_exc()[-600:]
    said = err.getvalue().strip()
    if code == 0:
        return "accepted", ""
    late = " started" in out.getvalue() or "(step " in said
    return ("failed late" if code != 2 or late else "refused"), said[-600:]


def _read(number: int, draw: random.Random, place: Path, store: Path) -> tuple[str, str, str]:
    """Asks a run to read one mutated layout or file; the change, what came of it, and what was said."""
    common = ["dataset.image_size=16", "tracking.ship=false", f"paths.store={store}"]
    short = ["train_tokenizer.num_train_steps=2", "train_tokenizer.batch_size=2", "train_tokenizer.num_held_out=1"]
    root = place / "root"
    if number % 3 == 0:
        plain(root, draw)
        change = spoil(root, draw)
        asked = ["experiment=quickstart", "--until", "train_tokenizer", "dataset=image_folder", f"dataset.root={root}"]
        outcome, said = run([*asked, *common, *short])
        if change == AFTER_HEADER and outcome == "failed late" and "cannot be decoded" in said:
            outcome = "refused"
        return change, outcome, said
    if number % 3 == 1:
        change, split = ilsvrc(root, draw), draw.choice(("train", "val"))
        asked = ["experiment=quickstart", "dataset=imagenet", f"dataset.root={root}", "dataset.partial=true"]
        steps = ["--only", "reference_statistics", f"reference_statistics.split={split}", "evaluate.test_split=val"]
        return f"{change} ({split})", *run([*asked, *steps, "eval_tokenizer.split=val", *common, *short])
    path, change = statistics(place, draw, 1280)
    asked = ["experiment=evaluate_samples", "protocol=efficientnet_lite0", "dataset=fashion_mnist_subset"]
    asked += [f"paths.store={store}", "tracking.ship=false", "reference_statistics.num_images=8"]
    if draw.random() < 0.5:
        key, more = "samples", ["evaluate.num_images=8"]
    else:
        metrics = draw.choice(("frechet", "frechet,precision_recall", "frechet,kernel_distance"))
        key, more = "reference_statistics.statistics", [f"metrics=[{metrics}]", "--only", "reference_statistics"]
        more.append(f"samples={_samples(store)}")
    return f"{key}: {change}", *run([*asked, f"{key}={path}", *more])


def _samples(store: Path) -> Path:
    import numpy as np

    path = store.parent / "samples.npz"
    if not path.is_file():
        np.savez(path, arr_0=np.random.default_rng(0).integers(0, 255, (1100, 8, 8, 3), dtype=np.uint8))
    return path


def main() -> int:
    """Prints what came of each kind, and every violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("seed", 0), ("overrides", 240), ("files", 60), ("layouts", 60)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    bad = 0

    def note(kind: str, request: object, outcome: str, said: str) -> None:
        nonlocal bad
        counts[f"{kind}: {outcome}"] += 1
        if outcome not in ("accepted", "refused"):
            bad += 1
            print(f"{outcome}: {request}\n    {said}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests = Requests(random.Random(args.seed))
        for _ in range(args.overrides):
            request = requests.overrides()
            note("overrides", [r[:120] for r in request], *planned(request, []))
        for _ in range(args.files):
            request = requests.file(folder / "conf")
            text = (folder / "conf" / "experiment" / f"{request[0].partition('=')[2]}.yaml").read_text()
            note("files", text[-400:], *planned(request, [folder / "conf"]))
        for number in range(args.layouts):
            draw = random.Random(args.seed * 1_000_003 + number)
            note("layouts", *_read(number, draw, folder / "data" / str(number), folder / "store"))
    for kind, count in sorted(counts.items()):
        print(f"{count:5d} {kind}")
    print(f"seed {args.seed}: {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
