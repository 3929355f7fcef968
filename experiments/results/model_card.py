"""The card of a trained model or tokenizer for a Hugging Face repository, filled from the store's records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.results.results import Result
from experiments.store.documents import Launch, Manifest, Record, Request
from experiments.store.paths import StepFolder
from experiments.store.scores import describe_metric
from maskgit_core.files import read_json

KINDS = {"model": "a masked image transformer", "tokenizer": "an image tokenizer"}


def upstream_of_kind(store: Path, folder: Path, kind: str) -> Path | None:
    """The nearest step of a kind that a step was made from, if any."""
    queue = [store / source.folder for source in Request.needed(folder).sources]
    while queue:
        place = queue.pop(0)
        request = Request.needed(place)
        if request.kind == kind:
            return place
        queue += [store / source.folder for source in request.sources]
    return None


def scores_of(results: Sequence[Result], folder: Path) -> list[Result]:
    """The evaluations that a step is behind, newest first."""
    return [r for r in results if folder in r.upstream]


def card(repo_id: str, folder: Path, results: Sequence[Result], *, licence: str, has_tokenizer: bool) -> str:
    """The text of README.md: facts, how to load it, data, recipe, scores with their protocols, provenance.

    Args:
        results: the evaluations it is behind.
        licence: of the weights, as the hub names it (`mit`, `cc-by-4.0`, `other`).
        has_tokenizer: the tokenizer is in the same repository.
    """
    request, launch, manifest = Request.needed(folder), Launch.read(folder), Manifest.needed(folder)
    about = [
        f"license: {json.dumps(licence)}",
        "library_name: maskgit-experiments",
        "tags: [maskgit, image-generation]",
    ]
    head = "\n".join(["---", *about, "---", ""])
    what = KINDS[request.kind]
    made = f" of the experiment `{launch.experiment}`" if launch else ""
    parts = [head, f"# {repo_id}\n", f"The step `{launch.step if launch else folder.name}`{made}: {what}.\n"]
    parts += ["## Use\n", _use(repo_id, request.kind, has_tokenizer, manifest)]
    parts += ["## Data\n", *_data(folder), "\n## Recipe\n"]
    parts += [f"```json\n{json.dumps(dict(request.config), indent=2, sort_keys=True)}\n```\n"]
    parts += [
        "## Scores\n",
        *(_scores(results) or ["None were computed.\n"]),
        "\n## Provenance\n",
        *_provenance(folder),
    ]
    return "\n".join(parts) + "\n"


def _use(repo_id: str, kind: str, has_tokenizer: bool, manifest: Manifest) -> str:
    lines = ["```python", "import maskgit_core as mg", ""]
    if kind == "tokenizer" or has_tokenizer:
        lines.append(f'tokenizer = mg.load_tokenizer("hf:{repo_id}")')
    if kind == "model":
        classes = manifest.facts.get("num_classes")
        asked = "labels=[0, 0, 1, 1]" if classes else "num_samples=4"
        lines.append(f'model = mg.load_model("hf:{repo_id}")')
        lines += [f"mg.show(mg.sample(model, tokenizer, {asked}))"] if has_tokenizer else []
    return "\n".join([*lines, "```\n"])


def _data(folder: Path) -> list[str]:
    """The datasets of a step and of everything it was made from, with the digests of their content."""
    store, queue, lines = StepFolder(folder).store, [folder], []
    while queue:
        place = queue.pop(0)
        request, manifest = Request.needed(place), Manifest.read(place)
        lines += [
            f"- {use.name} ({use.context}), digest `{use.digest[:16]}`"
            for use in (manifest.datasets if manifest else ())
        ]
        dataset = request.config.get("dataset")
        if isinstance(dataset, dict):
            options = ", ".join(f"{key} {value}" for key, value in sorted(dataset.items()) if key != "name")
            digests = [value[:16] for key, value in request.outside.items() if key.startswith("dataset")]
            lines.append(f"- {dataset['name']} ({request.stage}; {options}), digest `{' '.join(digests)}`")
        queue += [store / source.folder for source in request.sources]
    return list(dict.fromkeys(lines)) or ["The steps it was made from name none."]


def _scores(results: Sequence[Result]) -> list[str]:
    rows = []
    for result in results[:20]:
        values = ", ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in result.params.items())
        for score in result.scores:
            title = describe_metric(score.name)
            count = "" if score.num_images is None else f"{score.num_images:,}"
            cells = [title[0] if title else score.name, score.of, f"{score.value:.5g}", count, score.protocol, values]
            rows.append("| " + " | ".join(cells) + " |")
    head = ["| score | of | value | pictures | protocol | setting |", "|---|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _provenance(folder: Path) -> list[str]:
    request, record = Request.needed(folder), Record.read(folder)
    lines = [f"- fingerprint `{request.fingerprint}`"]
    if record is not None:
        state = " with changes" if record.code.dirty else ""
        lines.append(f"- code `{record.code.commit or 'none'}`{state}")
        lines.append("- " + ", ".join(f"{name} {version}" for name, version in sorted(record.packages.items())))
    described = read_json(folder / "files" / "model.json") or read_json(folder / "files" / "tokenizer.json") or {}
    return [*lines, f"- component `{described.get('module') or described.get('name', '')}`"]
