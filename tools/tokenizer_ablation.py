"""The ablation of tokenizers as files: a row a run, and a chart of them.

    python -m tools.tokenizer_ablation [--store DIR] [--folder docs]

Reads the finished runs of `tokenizer_ablation_fashion` in a store and writes `tokenizer_ablation.csv` and
`tokenizer_ablation.png`. The tables themselves are `maskgit table tokenizer_ablation_fashion` and
`maskgit table tokenizer_ablation_samples`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.results.plots import SETTINGS
from experiments.results.results import Result
from experiments.store.documents import Manifest
from experiments.store.scores import read_scores
from maskgit_core.files import sha256_of
from tools.ablation_files import rows_of, write

EXPERIMENT = "tokenizer_ablation_fashion"
QUANTIZERS = ("vq", "lfq", "fsq")
LOSSES = ("squared error", "+ perceptual", "+ adversarial")
#: Column -> key in the tokenizer's scores.
SCORES = {
    "psnr": "psnr",
    "fd_reconstructions": "fd_efficientnet_lite0",
    "codes_used": "codebook_usage",
    "code_perplexity": "codebook_perplexity",
}
COLUMNS = ("quantizer", "losses", "seed", *SCORES, "fd_samples", "tokenizer_seconds", "tokenizer_sha256", "commit")
TITLES = {
    "psnr": "PSNR of reconstructions, dB (higher is better)",
    "fd_reconstructions": "FD of reconstructions (lower is better)",
    "codes_used": "share of codes used",
    "fd_samples": "FD of samples (lower is better)",
}


def rows(store: Path) -> list[dict[str, Any]]:
    """A row a run, by quantizer, losses and seed.

    Raises:
        ArtifactError: there is no finished run of the experiment.
    """
    return rows_of(
        store,
        EXPERIMENT,
        _row,
        lambda row: (QUANTIZERS.index(row["quantizer"]), LOSSES.index(row["losses"]), row["seed"]),
    )


def _row(result: Result) -> dict[str, Any]:
    asked = result.params
    adversarial = float(str(asked["train_tokenizer.disc_weight"])) > 0
    losses = LOSSES[2 if adversarial else int(asked["train_tokenizer.perceptual"] != "none")]
    row: dict[str, Any] = {"quantizer": str(asked["tokenizer.quantizer"]), "losses": losses}
    row["seed"] = int(str(asked["train_tokenizer.seed"]))
    score = result.score("fd_efficientnet_lite0")
    row["fd_samples"] = None if score is None else round(score.value, 2)
    for folder in result.upstream:
        manifest = Manifest.needed(folder)
        if manifest.kind == "tokenizer":
            row["tokenizer_seconds"] = round(manifest.seconds, 1)
            row["tokenizer_sha256"] = sha256_of(folder / "files" / "weights.safetensors")[:16]
        elif manifest.kind == "tokenizer_scores":
            found = {score.key: score.value for score in read_scores(folder / "files")}
            row |= {column: round(found[key], 4) for column, key in SCORES.items()}
    return {**row, "commit": result.commit[:12]}


def figure(table: Sequence[dict[str, Any]]) -> Any:
    """Mean over the seeds with a dot a seed: four scores by quantizer and losses."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(8.2, 5.4), layout="constrained")
        FigureCanvasAgg(drawn)
        labelled = set[str]()
        for axis, (column, title) in zip(drawn.subplots(2, 2).flat, TITLES.items(), strict=True):
            for shift, losses in enumerate(LOSSES):
                for place, quantizer in enumerate(QUANTIZERS):
                    here = [r for r in table if r["quantizer"] == quantizer and r["losses"] == losses]
                    values = [float(row[column]) for row in here]
                    if not values:
                        continue
                    x, label = place + 0.22 * (shift - 1), None if losses in labelled else losses
                    labelled.add(losses)
                    axis.plot([x] * len(values), values, "o", ms=3, alpha=0.6, color=f"C{shift}")
                    mean = statistics.fmean(values)
                    axis.plot([x - 0.08, x + 0.08], [mean, mean], "-", lw=1.8, color=f"C{shift}", label=label)
            axis.set_title(title, fontsize=9)
            axis.set_xticks(range(len(QUANTIZERS)), [name.upper() for name in QUANTIZERS])
            axis.set_xlim(-0.5, len(QUANTIZERS) - 0.5)
        drawn.axes[0].legend(fontsize=7, frameon=False)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes both files."""
    write("tokenizer_ablation", "the ablation of tokenizers", COLUMNS, rows, figure, arguments)


if __name__ == "__main__":
    main()
