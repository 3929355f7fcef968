"""Experiments from Python: plan, run, and read what a store holds.

from experiments import api

print(api.plan("experiment=quickstart", "train.lr=1e-3,2e-3"))
store = api.run("experiment=quickstart")
store.results()
store.step("quickstart/evaluate").metrics()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskgit_core.errors import ArtifactError, LaunchError

if TYPE_CHECKING:
    import pandas as pd

    from experiments.planning.plan import PlannedStep
    from experiments.store.typed_json import Options


@dataclass(frozen=True)
class Plan:
    """The steps of a request and what would happen to each; printing it shows the table of `maskgit plan`."""

    steps: tuple[PlannedStep, ...]

    def __str__(self) -> str:
        from experiments.planning.plan_table import plan_text

        return plan_text(self.steps)

    def to_dataframe(self) -> pd.DataFrame:
        """A row per step: name, stage, action (`done`, `run`, ...), reason, folder."""
        import pandas as pd

        rows = [(s.node.name, s.node.request.stage, s.action, s.reason, s.node.folder) for s in self.steps]
        return pd.DataFrame(rows, columns=["step", "stage", "action", "reason", "folder"])


@dataclass(frozen=True)
class Step:
    """A finished step of a store."""

    name: str
    folder: Path

    @property
    def files(self) -> Path:
        """The folder of its output files."""
        return self.folder / "files"

    @property
    def facts(self) -> Options:
        """Facts that it stated for steps after it, e.g. `num_classes`, `codebook_size`, `grid`."""
        from experiments.store.documents import Manifest

        manifest = Manifest.read(self.folder)
        if manifest is None:
            raise ArtifactError(f"{self.folder}: is not finished; run it, or look at `maskgit status`")
        return manifest.facts

    @property
    def scores(self) -> dict[str, float]:
        """Its scores by key, e.g. `fid` and `fid/real_images`; empty where it has none."""
        from experiments.store.scores import read_scores

        return {score.key: score.value for score in read_scores(self.files)}

    def metrics(self) -> pd.DataFrame:
        """Its logged metrics: rows are logged steps, columns metrics; points that a resume replaced are left out."""
        import pandas as pd

        from experiments.store.journal import read_points

        points = pd.DataFrame(read_points(self.folder), columns=["metric", "step", "value", "time"])
        return points.pivot_table(index="step", columns="metric", values="value")


@dataclass(frozen=True)
class Results:
    """The results in a store."""

    path: Path

    def results(self, *filters: str) -> pd.DataFrame:
        """A row per finished evaluation, newest first: experiment, step, the sweep's values, every score by its key.

        Args:
            filters: as `maskgit compare` takes them, e.g. `"experiment=quickstart"`, `"train.lr<1e-3"`.

        Raises:
            ConfigError: a filter names a key that no result has.
        """
        import pandas as pd

        from experiments.results.results import Filter, collect, select

        chosen = select(collect(self.path), [Filter.read(text) for text in filters])
        rows = [
            {"experiment": r.experiment, "step": r.step, **r.params, **{s.key: s.value for s in r.scores}, "run": r.run}
            for r in chosen
        ]
        return pd.DataFrame(rows)

    def step(self, name: str) -> Step:
        """A step by what the commands take: `experiment/step`, a step's name, a fingerprint, a folder.

        Raises:
            ConfigError: nothing or more than one step has this name.
        """
        from experiments.store.find import select

        entry = select(name, self.path).one
        return Step(entry.name, self.path / entry.folder)


def plan(*request: str, config_dirs: Sequence[str | Path] = (), redo: Sequence[str] = ()) -> Plan:
    """The plan of a request: what `maskgit run` would do, and why; nothing is run or written.

    Args:
        request: `experiment=NAME` and `key=value`, as on the command line; `a,b` sweeps.
        config_dirs: folders with groups of your own.
        redo: names of steps to run again although they are done.

    Raises:
        MaskgitError: the request is wrong; one line that names the key and the remedy.
    """
    from experiments.launching.submission import plan as planned
    from experiments.planning.absent_weights import with_absent_weights
    from experiments.planning.pipeline import build

    graph = build(list(request), [Path(place) for place in config_dirs], allow_absent=True)
    return Plan(tuple(with_absent_weights(planned(graph, redo), graph.absent)))


def run(*request: str, config_dirs: Sequence[str | Path] = (), redo: Sequence[str] = ()) -> Results:
    """Runs what is missing (with `launcher=slurm`: submits it) and gives the store; progress is printed.

    Args:
        request, config_dirs, redo: as in `plan`.

    Raises:
        MaskgitError: the request is wrong; nothing has run. LaunchError: a step failed; what it printed is above.
    """
    from experiments.launching.calls import load_launcher
    from experiments.launching.execution import fetch_weights, start
    from experiments.planning.graph import store_of
    from experiments.planning.pipeline import build

    graph = build(list(request), [Path(place) for place in config_dirs], fetch=fetch_weights,
                  check=lambda settings: load_launcher(settings["launcher"]))  # fmt: skip
    code = start(graph, load_launcher(graph.settings["launcher"]), redo=redo)
    store = open_store(store_of(graph).root)
    if code:
        raise LaunchError(f"{graph.experiment}: a step failed or was stopped (exit code {code}); see maskgit failures")
    return store


def open_store(path: str | Path | None = None) -> Results:
    """The results in a store; without a path, in `$MASKGIT_STORE`, else `runs`."""
    from experiments.store.find import default_store

    return Results(Path(path).expanduser().absolute() if path else default_store())
