"""The ablation of mask schedules as files: a row a run, and a chart of them.

    python -m tools.schedule_ablation [--store DIR] [--folder docs]

Reads the finished runs of `schedule_ablation_fashion` in a store and writes `schedule_ablation.csv` and
`schedule_ablation.png`. The table itself is `maskgit table schedule_ablation_fashion`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.results.plots import SETTINGS
from experiments.results.results import Result
from experiments.store.documents import Manifest
from experiments.store.journal import read_points
from maskgit_core.files import sha256_of
from tools.ablation_files import rows_of, write

EXPERIMENT = "schedule_ablation_fashion"
#: From most to least masked while training.
SCHEDULES = ("exp", "cubic", "square", "cosine", "arccos", "linear", "sqrt", "log")
SCORES = {"fd": "fd_efficientnet_lite0"}
NLL = {f"nll_{ratio}": f"held_out_nll_{ratio}" for ratio in (25, 50, 75, 100)}
COLUMNS = ("schedule", "seed", *SCORES, *NLL, "train_seconds", "sample_seconds", "model_sha256", "commit")


def rows(store: Path) -> list[dict[str, Any]]:
    """A row a run, by schedule and seed.

    Raises:
        ArtifactError: there is no finished run of the experiment.
    """
    return rows_of(store, EXPERIMENT, _row, lambda row: (SCHEDULES.index(row["schedule"]), row["seed"]))


def _row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"schedule": result.config["train.mask_schedule"], "seed": int(result.config["train.seed"])}
    for column, key in SCORES.items():
        score = result.score(key)
        row[column] = None if score is None else round(score.value, 4)
    for folder in result.upstream:
        manifest = Manifest.needed(folder)
        if manifest.kind == "model":
            last = {point.metric: point.value for point in read_points(folder)}
            row |= {column: round(last[metric], 4) for column, metric in NLL.items()}
            row["train_seconds"] = round(manifest.seconds, 1)
            row["model_sha256"] = sha256_of(folder / "files" / "model.safetensors")[:16]
        elif manifest.kind == "samples":
            row["sample_seconds"] = round(manifest.seconds, 1)
    return {**row, "commit": result.commit[:12]}


def figure(table: Sequence[dict[str, Any]]) -> Any:
    """Mean over the seeds with a dot a seed: distance of samples and held-out likelihood by schedule."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in SCHEDULES if any(row["schedule"] == name for row in table)]
    places = range(len(names))
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(8.2, 3.2), layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(1, 2)
        titles = ("FD of 1,000 samples (lower is better)", "held-out NLL, nats a masked token")
        for axis, title, columns in zip(axes, titles, (tuple(SCORES), tuple(NLL)), strict=True):
            for column in columns:
                values = [[float(r[column]) for r in table if r["schedule"] == name] for name in names]
                label = f"{column.removeprefix('nll_')} % masked" if column in NLL else None
                line = axis.plot(places, [statistics.fmean(v) for v in values], "o-", ms=4, lw=1.1, label=label)
                dots = [(place, value) for place, several in zip(places, values, strict=True) for value in several]
                axis.plot(*zip(*dots, strict=True), "o", ms=2.5, alpha=0.5, color=line[0].get_color())
            axis.set_title(title, fontsize=9)
            axis.set_xticks(list(places), names, rotation=35)
        axes[1].legend(fontsize=7, frameon=False)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes both files."""
    write("schedule_ablation", "the ablation of mask schedules", COLUMNS, rows, figure, arguments)


if __name__ == "__main__":
    main()
