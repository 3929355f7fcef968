"""The ablation of a transformer's parts as files: a row a run, the tables, and a chart of them.

    python -m tools.modular_ablation [--store DIR] [--folder docs]

Reads the finished runs of `modular_ablation_fashion` in a store, writes `modular_ablation.csv` and
`modular_ablation.png`, and prints the table of the page. Distances alone: `maskgit table modular_ablation_fashion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.results.plots import SETTINGS
from experiments.results.results import Result, Spread
from experiments.store.documents import Manifest
from experiments.store.journal import read_points
from maskgit_core.errors import ArtifactError
from maskgit_core.files import sha256_of
from tools.ablation_files import rows_of, write

EXPERIMENT = "modular_ablation_fashion"
#: Option of `model=modular` -> its plain value and the name of the other.
PARTS = {
    "positions": ("learned", "rotary positions"),
    "mlp": ("gelu", "SwiGLU"),
    "qk_norm": ("false", "query-key norm"),
    "num_registers": ("0", "a register"),
    "class_as": ("token", "AdaLN"),
    "tied_head": ("false", "tied head"),
}
PLAIN, ALL = "plain", "all six"
NAMES = (PLAIN, *(name for _, name in PARTS.values()), ALL)
NLL = {f"nll_{ratio}": f"held_out_nll_{ratio}" for ratio in (25, 50, 75, 100)}
COLUMNS = ("model", "seed", "fd", *NLL, "parameters", "train_seconds", "sample_cpu_ms", "model_sha256", "commit")


def named(config: Mapping[str, object]) -> str:
    """Which row of the table a run belongs to, by the options of its model.

    Raises:
        ArtifactError: more than one part differs from the plain one, but not all.
    """
    others = [name for key, (plain, name) in PARTS.items() if str(config[f"model.{key}"]).lower() != plain]
    if len(others) in (0, len(PARTS)):
        return ALL if others else PLAIN
    if len(others) > 1:
        raise ArtifactError(f"{EXPERIMENT}: a run differs in {', '.join(others)}; rows differ in one part or in all")
    return others[0]


def rows(store: Path) -> list[dict[str, Any]]:
    """A row a run, by model and seed.

    Raises:
        ArtifactError: there is no finished run of the experiment.
    """
    return rows_of(store, EXPERIMENT, _row, lambda row: (NAMES.index(row["model"]), row["seed"]))


def _row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"model": named(result.config), "seed": int(str(result.config["train.seed"]))}
    score = result.score("fd_efficientnet_lite0")
    row["fd"] = None if score is None else round(score.value, 2)
    for folder in result.upstream:
        kind, last = Manifest.needed(folder).kind, {point.metric: point.value for point in read_points(folder)}
        if kind == "model":
            row |= {column: round(last[metric], 4) for column, metric in NLL.items()}
            row["parameters"] = _parameters(folder / "files" / "model.safetensors")
            row["train_seconds"] = round(Manifest.needed(folder).seconds, 1)
            row["model_sha256"] = sha256_of(folder / "files" / "model.safetensors")[:16]
        elif kind == "samples":
            row["sample_cpu_ms"] = round(1000 * last["cpu_seconds_per_image"], 2)
    return {**row, "commit": result.commit[:12]}


def _parameters(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    return sum(math.prod(shape) for shape in shapes)


def page_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Mean ± deviation over the seeds of what the runs gave, a row a model."""
    columns = {"fd": 1, "nll_25": 3, "nll_50": 3, "nll_75": 3, "nll_100": 3}
    lines = ["| model | FD | NLL 25 % | 50 % | 75 % | 100 % | weights |", "|---|" + "---:|" * 6]
    for name in NAMES:
        same = [row for row in table if row["model"] == name]
        if same:
            texts = [Spread.of([float(row[column]) for row in same]).fixed(d) for column, d in columns.items()]
            lines.append(f"| {name} | {' | '.join(texts)} | {int(same[0]['parameters']):,} |")
    return "\n".join(lines)


def figure(table: Sequence[Mapping[str, Any]]) -> Any:
    """A dot a seed and a bar at their mean: distance of samples and held-out likelihood by model."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in NAMES if any(row["model"] == name for row in table)]
    titles = {"fd": "FD of samples (lower is better)", "nll_50": "held-out NLL, nats a token, 50 % masked",
              "nll_100": "the same, all masked"}  # fmt: skip
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(10.5, 3.2), layout="constrained")
        FigureCanvasAgg(drawn)
        for axis, (column, title) in zip(drawn.subplots(1, 3, sharey=True), titles.items(), strict=True):
            for place, name in enumerate(names):
                values = [float(row[column]) for row in table if row["model"] == name]
                axis.plot(values, [place] * len(values), "o", ms=4, alpha=0.7, color=f"C{place}")
                mean = Spread.of(values).mean
                axis.plot([mean, mean], [place - 0.3, place + 0.3], "-", lw=1.8, color=f"C{place}")
                if name == PLAIN:
                    axis.axvline(mean, lw=0.8, ls=":", color="0.5", zorder=0)
            axis.set_title(title, fontsize=9)
        drawn.axes[0].set_yticks(range(len(names)), names)
        drawn.axes[0].invert_yaxis()
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes both files and prints the table."""
    seen: list[dict[str, Any]] = []

    def kept(store: Path) -> list[dict[str, Any]]:
        seen.extend(rows(store))
        return seen

    write("modular_ablation", "the ablation of a transformer's parts", COLUMNS, kept, figure, arguments)
    print(page_table(seen))


if __name__ == "__main__":
    main()
