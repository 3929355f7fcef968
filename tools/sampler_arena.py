"""The arena of samplers as files: a row a cell, the table, the Pareto picture and strips of samples.

    python -m tools.sampler_arena [--store DIR] [--folder docs] [--earlier FILE]

Reads the finished cells of `sampler_arena` (and of `context_reuse`, where it was run) in a store and writes
`sampler_arena.csv`, `sampler_arena.png` and `sampler_arena_strips.png`; those of `token_critic` go into
`token_critic.csv`. The tables are printed. `--earlier` adds the rows of an earlier `sampler_arena.csv`: they stand in
place of cells with the same samples, whose pictures must be the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.config.specs import SamplerSpec
from experiments.results.plots import SETTINGS, Mark, pareto_front, rendered
from experiments.results.results import Result, Spread, collect
from experiments.store.documents import Manifest, Request
from experiments.store.find import default_store
from experiments.store.journal import read_points
from maskgit_core.decoding import Guidance
from maskgit_core.errors import ArtifactError
from maskgit_core.files import sha256_of, write_bytes

EXPERIMENT, REUSE, CRITIC = "sampler_arena", "context_reuse", "token_critic"
SCORE = "fd_efficientnet_lite0"
STRIP = 10  # pictures of a strip: one of each class


@dataclass(frozen=True)
class Cell:
    """One sampler at one number of steps with one seed."""

    sampler: str
    guidance: float
    num_steps: int
    full_every: int
    seed: int
    evaluations: int  # of the model an image, two at a step with guidance
    fd: float
    cpu_ms_per_image: float
    num_images: int
    samples: str  # fingerprint of the samples' step
    images_sha256: str
    commit: str
    images: Path

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.sampler}, no guidance" if self.guidance == 1.0 else self.sampler


def cells(store: Path, experiment: str) -> list[Cell]:
    """The cells of the newest execution's number of images, in the order of the sweep; of equal ones the newest."""
    found = [_cell(result) for result in collect(store, ("scores",), experiment)]
    newest: dict[tuple[object, ...], Cell] = {}
    for cell in found:
        key = (cell.sampler, cell.guidance, cell.num_steps, cell.full_every, cell.seed)
        if cell.num_images == found[0].num_images:
            newest.setdefault(key, cell)
    return list(newest.values())


def _cell(result: Result) -> Cell:
    folder = next(f for f in result.upstream if Manifest.needed(f).kind == "samples")
    request, score = Request.needed(folder), result.score(SCORE)
    if score is None:
        raise ArtifactError(f"{result.folder}: has no score {SCORE}")
    options = dict(request.config["sampler"])
    name = str(options.pop("name"))
    cpu_s = {point.metric: point.value for point in read_points(folder)}["cpu_seconds_per_image"]
    return Cell(
        sampler=str(result.params.get("sampler", name)),
        guidance=float(options["guidance_scale"]),
        num_steps=int(options["num_steps"]),
        full_every=int(options.get("full_every", 1)),
        seed=int(request.config["seed"]),
        evaluations=evaluations(name, options),
        fd=round(score.value, 3),
        cpu_ms_per_image=round(1000 * cpu_s, 3),
        num_images=int(score.num_images or 0),
        samples=request.fingerprint[:12],
        images_sha256=sha256_of(folder / "files" / "images.npz")[:16],
        commit=result.commit[:12],
        images=folder / "files" / "images.npz",
    )


def with_earlier(found: Sequence[Cell], path: Path) -> list[Cell]:
    """The rows of an earlier file, and those cells that it does not have.

    Raises:
        ArtifactError: the same request gave other pictures in the store than in the file.
    """
    here = {cell.samples: cell for cell in found}
    merged = dict(here)
    for row in csv.DictReader(io.StringIO(path.read_text())):
        typed = {f.name: {"int": int, "float": float}.get(str(f.type), str)(row[f.name]) for f in fields(Cell)[:-1]}
        same = here.get(row["samples"])
        if same is not None and same.images_sha256 != row["images_sha256"]:
            raise ArtifactError(
                f"{path}: samples {row['samples']} have the pictures {row['images_sha256']} and in the store "
                f"{same.images_sha256}; give a file of the same models and machines"
            )
        merged[row["samples"]] = Cell(**typed, images=Path() if same is None else same.images)
    return list(merged.values())


def evaluations(name: str, options: dict[str, Any]) -> int:
    """Evaluations for an image: one a step, two at steps with guidance, and one of a critic after each but the last."""
    sampler = SamplerSpec(name, options).build()
    keys = ("scale", "schedule", "power", "start", "end")
    guidance = Guidance(*(getattr(sampler, f"guidance_{key}") for key in keys))
    half = torch.tensor([0.5])
    steps = range(sampler.num_steps)
    judged = (sampler.num_steps - 1) * sampler.needs_critic
    return judged + sum(1 + (float(guidance.at(step, sampler.num_steps, half)) != 1.0) for step in steps)


def as_csv(found: Sequence[Cell]) -> str:
    """A row a cell, with a header."""
    text = io.StringIO()
    names = [field.name for field in fields(Cell) if field.name != "images"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in found)
    return text.getvalue()


def grouped(found: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    """Cells by a key, in the order in which keys come first."""
    groups: dict[Any, list[Cell]] = {}
    for cell in found:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def by_name(found: Sequence[Cell], num_steps: int) -> dict[str, list[Cell]]:
    """The cells at one number of steps by sampler."""
    return grouped([cell for cell in found if cell.num_steps == num_steps], lambda c: c.name)


def table(found: Sequence[Cell]) -> str:
    """Distance of each sampler at each number of steps, mean ± deviation over seeds, the lowest bold."""
    steps = sorted({cell.num_steps for cell in found})
    means = {
        key: Spread.of([c.fd for c in same]) for key, same in grouped(found, lambda c: (c.name, c.num_steps)).items()
    }
    best = {step: min(spread.mean for (_, at), spread in means.items() if at == step) for step in steps}
    lines = [
        f"| sampler | {' | '.join(f'{step} steps' for step in steps)} | CPU ms an image |",
        "|---|" + "---:|" * (len(steps) + 1),
    ]
    for name, same in grouped(found, lambda c: c.name).items():
        texts = []
        for step in steps:
            spread = means.get((name, step))
            text = "" if spread is None else spread.fixed(0)
            texts.append(f"**{text}**" if spread is not None and spread.mean == best[step] else text)
        by_step = grouped(sorted(same, key=lambda c: c.num_steps), lambda c: c.num_steps).values()
        speeds = " / ".join(f"{Spread.of([c.cpu_ms_per_image for c in cell]).mean:.0f}" for cell in by_step)
        lines.append(f"| {name} | {' | '.join(texts)} | {speeds} |")
    return "\n".join(lines)


def reuse_table(found: Sequence[Cell]) -> str:
    """Distance and CPU time by how often an evaluation is full."""
    lines = ["| full evaluations | FD | CPU ms an image | times faster |", "|---|---:|---:|---:|"]
    groups = grouped(sorted(found, key=lambda c: c.full_every), lambda c: c.full_every)
    speeds = {every: Spread.of([c.cpu_ms_per_image for c in same]) for every, same in groups.items()}
    for every, same in groups.items():
        ratio = speeds[min(groups)].mean / speeds[every].mean
        name = "all" if every == 1 else f"one in {every}"
        lines.append(
            f"| {name} | {Spread.of([c.fd for c in same]).fixed(1)} | {speeds[every].fixed(1)} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def critic_table(found: Sequence[Cell]) -> str:
    """Distance and CPU time of each sampler at each number of evaluations."""
    lines = ["| sampler | steps | evaluations | FD | CPU ms an image |", "|---|---:|---:|---:|---:|"]
    for (name, steps), same in grouped(found, lambda c: (c.name, c.num_steps)).items():
        score, speed = (Spread.of([getattr(c, key) for c in same]) for key in ("fd", "cpu_ms_per_image"))
        lines.append(f"| {name} | {steps} | {same[0].evaluations} | {score.fixed(1)} | {speed.fixed(1)} |")
    return "\n".join(lines)


def figure(found: Sequence[Cell]) -> Any:
    """Mean distance over evaluations and over CPU time, a line a sampler, the Pareto fronts dashed."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = {"evaluations of the model an image": "evaluations", "CPU milliseconds an image": "cpu_ms_per_image"}
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(10.5, 4.8), layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(1, 2, sharey=True)
        for axis, (label, column) in zip(axes, measures.items(), strict=True):
            marks = []
            for number, (name, same) in enumerate(grouped(found, lambda c: c.name).items()):
                line = [
                    Mark(name, *(Spread.of([getattr(c, key) for c in cell]).mean for key in (column, "fd")))
                    for cell in grouped(sorted(same, key=lambda c: c.num_steps), lambda c: c.num_steps).values()
                ]
                style = {"marker": "osD^v*"[number % 6], "color": mpl.colormaps["tab20"](number), "ms": 4, "lw": 1}
                axis.plot([m.x for m in line], [m.y for m in line], label=name, **style)
                marks += line
            front = pareto_front(marks)
            axis.plot([m.x for m in front], [m.y for m in front], "k--", lw=1.2, label="Pareto front", zorder=0)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
            axis.set_xlabel(label)
        axes[0].set_ylabel(f"FD of {found[0].num_images} samples (lower is better)")
        axes[1].legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def strips(found: Sequence[Cell]) -> Any:
    """The first samples of seed 0, one of each class: a row a sampler, a column a number of steps."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = grouped([cell for cell in found if cell.seed == 0], lambda c: c.name)
    steps = sorted({cell.num_steps for cell in found})
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(2.6 * len(steps) + 1.2, 0.31 * len(rows) + 0.3), layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(len(rows), len(steps), squeeze=False)
        for line, (name, same) in zip(axes, rows.items(), strict=True):
            for axis, step in zip(line, steps, strict=True):
                axis.set_axis_off()
                for cell in [cell for cell in same if cell.num_steps == step and cell.images != Path()]:
                    axis.imshow(np.hstack(np.load(cell.images)["arr_0"][:STRIP])[..., 0], cmap="gray")
            line[0].text(-0.02, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        for axis, step in zip(axes[0], steps, strict=True):
            axis.set_title(f"{step} steps", fontsize=8)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files and prints the tables."""
    parser = argparse.ArgumentParser(description="the arena of samplers as a CSV file, a table and pictures")
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    parser.add_argument("--earlier", type=Path, default=None, help="an earlier sampler_arena.csv whose rows are kept")
    asked = parser.parse_args(arguments)
    store = asked.store.expanduser().absolute()
    found, reused, judged = (cells(store, name) for name in (EXPERIMENT, REUSE, CRITIC))
    if judged:
        write_bytes(asked.folder / "token_critic.csv", as_csv(judged).encode())
        print(critic_table(judged))
    if not found and not judged:
        raise ArtifactError(f"{store}: holds no finished cell; first run: maskgit run experiment={EXPERIMENT}")
    if found and asked.earlier is not None:
        every = with_earlier([*found, *reused], asked.earlier)
        found, reused = (
            [c for c in every if (c.num_images == found[0].num_images) is arena] for arena in (True, False)
        )
    if found:
        write_arena(found, reused, asked.folder)


def write_arena(found: list[Cell], reused: list[Cell], folder: Path) -> None:
    """Writes the arena's files and prints its tables."""
    last = max(cell.num_steps for cell in found)
    ends = {name: Spread.of([c.fd for c in same]).mean for name, same in by_name(found, last).items()}
    found = sorted(found, key=lambda c: (ends.get(c.name, float("inf")), c.name, c.num_steps, c.seed))
    write_bytes(folder / "sampler_arena.csv", as_csv([*found, *reused]).encode())
    write_bytes(folder / "sampler_arena.png", rendered(figure(found), "png"))
    write_bytes(folder / "sampler_arena_strips.png", rendered(strips(found), "png"))
    print(table(found))
    if reused:
        print("\n" + reuse_table(reused))


if __name__ == "__main__":
    main()
