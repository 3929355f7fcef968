"""Pictures on a page: samples by class beside real pictures and an untrained model's, strips of one seed, captions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.specs import DatasetSpec, Input
from experiments.results import html
from experiments.running.binding import arguments, load_inputs
from experiments.store.documents import Launch, Manifest, Request
from experiments.store.paths import StepFolder
from maskgit_core.errors import MaskgitError

MAX_CLASSES, COLUMNS, SIDE, MAX_SCANNED = 12, 6, 96, 1500
#: (stage, picture) -> what one sees.
CAPTIONS = {
    ("train_tokenizer", "reconstructions"): "Held-out pictures, each above what the trained tokenizer makes of it.",
    ("eval_tokenizer", "reconstructions"): "Real pictures, their reconstructions, and the difference (grey is none).",
    ("sample", "grid"): "Samples, unselected; a row for each class.",
    ("edit", "grid"): "What is kept, and what the model fills in.",
}


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures by class; `columns` names what stands beside what."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[html.Picture | None, ...]], ...]


def gallery(scored: Input) -> Gallery | None:
    """Real pictures, samples and an untrained model's samples of the first classes; None without samples."""
    sources = Request.needed(scored.folder).inputs
    made = {name: _images(scored, sources.get(param, ())) for name, param in
            (("samples", "generated"), ("an untrained model", "ceiling"))}  # fmt: skip
    if made["samples"] is None:
        return None
    names = _class_names(scored, sources)
    labels = made["samples"].labels
    free = labels is None or min(labels) < 0
    wanted: list[int] = [-1] if free else sorted(set(map(int, labels)))[:MAX_CLASSES]
    sets = {"real": _real(scored, wanted), **{name: _by_class(images, wanted) for name, images in made.items()}}
    shown = [name for name, found in sets.items() if found]
    rows = []
    for label in wanted:
        title = "" if free else str(names[label]) if label < len(names) else f"class {label}"
        rows.append((title, tuple(_strip(sets[name].get(label, ()), f"{name}: {title}") for name in shown)))
    return Gallery(tuple(shown), tuple(rows))


def strip(scored: Input, count: int = 8) -> html.Picture | None:
    """The first sample of each of the first classes (or the first samples): the same seeds in every item of a sweep."""
    images = _images(scored, Request.needed(scored.folder).inputs.get("generated", ()))
    if images is None:
        return None
    labels = None if images.labels is None else [int(label) for label in images.labels]
    if labels is None or min(labels) < 0:
        chosen = list(range(min(count, len(images))))
    else:
        chosen = [labels.index(label) for label in sorted(set(labels))[:count]]
    return _strip([images.read([i])[0] for i in chosen], "samples of the same seeds")


def _images(scored: Input, sources: Sequence[Any]) -> Any:
    from maskgit_core.images.image_sets import open_images

    path = StepFolder(scored.folder).store / sources[0].folder / "files" / "images.npz" if sources else None
    if path is None or not path.is_file():
        return None
    with suppress(MaskgitError, OSError):
        return open_images(path)
    return None


def _class_names(scored: Input, sources: Mapping[str, Sequence[Any]]) -> Sequence[str]:
    for source in sources.get("generated", ()):
        manifest = Manifest.read(StepFolder(scored.folder).store / source.folder)
        if manifest is not None and manifest.facts.get("class_names"):
            return list(map(str, manifest.facts["class_names"]))
    return list(map(str, scored.facts.get("class_names") or ()))


def _by_class(images: Any, wanted: Sequence[int]) -> dict[int, list[Any]]:
    """The first pictures (uint8 HWC) of each class."""
    if images is None:
        return {}
    labels = [-1] * len(images) if images.labels is None or wanted == [-1] else [int(n) for n in images.labels]
    by_class = {label: [i for i, n in enumerate(labels) if n == label][:COLUMNS] for label in wanted}
    return {label: [images.read([i])[0] for i in places] for label, places in by_class.items() if places}


def _real(scored: Input, wanted: Sequence[int]) -> dict[int, list[Any]]:
    """Real pictures of each class from the split that gave the floor; none where the data is not to be had."""
    by_class: dict[int, list[Any]] = {}
    with suppress(MaskgitError, OSError):
        request, launch = Request.needed(scored.folder), Launch.needed(scored.folder)
        given = arguments(request, launch, load_inputs(StepFolder(scored.folder).store, request, launch))
        if not isinstance(dataset := given.get("dataset"), DatasetSpec):
            return {}
        data = dataset.with_options(split=given["test_split"]).build()
        for i in range(min(len(data), MAX_SCANNED)):
            sample = data[i]
            label = -1 if wanted == [-1] else int(sample.label)
            if label in wanted and len(by_class.setdefault(label, [])) < COLUMNS:
                by_class[label].append(sample.image)
            if len(by_class) == len(wanted) and all(len(several) == COLUMNS for several in by_class.values()):
                break
    return {label: several for label, several in by_class.items() if several}


def _strip(images: Sequence[Any], alt: str) -> html.Picture | None:
    """Pictures (uint8 HWC) side by side, at most 96 px high."""
    import numpy as np
    from PIL import Image

    if not len(images):
        return None
    tiles = []
    for pixels in images:
        tile = Image.fromarray(np.asarray(pixels).squeeze())
        if tile.height > SIDE:
            tile = tile.resize((max(1, tile.width * SIDE // tile.height), SIDE), Image.Resampling.LANCZOS)
        tiles.append(tile.convert("RGB"))
    gap = max(1, tiles[0].height // 28)
    small = tiles[0].height <= 64
    size = (sum(t.width + gap for t in tiles) - gap, max(t.height for t in tiles))
    canvas = Image.new("RGBA", size) if small else Image.new("RGB", size, "grey")  # gaps that suit light and dark pages
    x = 0
    for tile in tiles:
        canvas.paste(tile, (x, 0))
        x += tile.width + gap
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    return html.picture(buffer.getvalue(), ".png" if small else ".jpg", alt, "")


def caption(item: Input, name: str) -> str:
    """The caption of a picture that a step shows."""
    stem, stage = Path(name).stem, Request.needed(item.folder).stage
    told = CAPTIONS.get((stage, stem), f"{Path(name).name}.")
    names = item.facts.get("class_names")
    rows = f" Rows: {', '.join(map(str, names))}." if names and stem == "grid" and len(names) <= 20 else ""
    return f"{item.name}: {told}{rows}"
