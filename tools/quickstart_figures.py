"""The figures of README.md, from a finished run of the quickstart: its table, the sentence below it and the picture.

    python -m tools.quickstart_figures [--store DIR] [--readme README.md]

Replaces what stands between the two marks in the README and `docs/quickstart_samples.png` beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.store.find import default_store
from maskgit_core.errors import ArtifactError
from maskgit_core.files import write_bytes

BEGIN, END = "<!-- figures: python -m tools.quickstart_figures -->", "<!-- end of figures -->"
DISTANCE = "fd_efficientnet_lite0"
ROWS = {
    "real images": "real test photos (the floor)",
    "reconstructions": "the tokenizer's reconstructions",
    "samples": "**samples** (12 steps, guidance {guidance:g})",
    "untrained model": "an untrained model's samples (the ceiling)",
}


def scores_of(folder: Path) -> dict[tuple[str, str], float]:
    """(name, of what) -> value, of a finished `evaluate`.

    Raises:
        ArtifactError: the step is not finished.
    """
    path = folder / "evaluate" / "files" / "scores.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: is missing; first run: maskgit run experiment=quickstart")
    return {(row["name"], row["of"]): float(row["value"]) for row in json.loads(path.read_text())["scores"]}


def block(scores: Mapping[tuple[str, str], float], guidance: float) -> str:
    """The table and the sentence below it."""
    lines = [f"| what, N = 500 against 4,000 training photos | {DISTANCE} |", "|---|---|"]
    for of, text in ROWS.items():
        value = f"{scores[DISTANCE, of]:,.1f}"
        lines.append(f"| {text.format(guidance=guidance)} | {f'**{value}**' if of == 'samples' else value} |")
    place = scores["floor_to_ceiling", "samples"]
    named, real = (100 * scores["class_accuracy", of] for of in ("samples", "real images"))
    lines += [
        "",
        f"(score - floor) / (ceiling - floor) = {place:.3f}. A small classifier trained on real photos names "
        f"{named:.1f} % of the 500",
        f"unselected samples as their class, and {real:.1f} % of real test photos.",
    ]
    return "\n".join(lines)


def replaced(text: str, new: str) -> str:
    """The README with `new` between its marks.

    Raises:
        ArtifactError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ArtifactError(f"the README lacks the marks {BEGIN} and {END}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrites the README and copies the picture."""
    parser = argparse.ArgumentParser(description="the README's figures from a finished run of the quickstart")
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    asked = parser.parse_args(arguments)
    folder = asked.store.expanduser().absolute() / "experiments" / "quickstart"
    scores = scores_of(folder)
    request = json.loads((folder / "sample" / "request.json").read_text())
    new = block(scores, float(request["config"]["sampler"]["guidance_scale"]))
    write_bytes(asked.readme, replaced(asked.readme.read_text(), new).encode())
    shutil.copyfile(folder / "sample" / "files" / "grid.png", asked.readme.parent / "docs" / "quickstart_samples.png")
    print(new)


if __name__ == "__main__":
    main()
