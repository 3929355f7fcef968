"""Values that follow from a folder of pictures: where a config says `auto`, sizes are chosen by what is in the folder.

An experiment marks what it leaves open with the word `auto` (`dataset.image_size: auto`); whatever a user sets takes
its place. The chosen values are ordinary config values: they are in the plan, in the fingerprints and in the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from experiments.store.typed_json import Block, Options
from maskgit_core.content import resolve
from maskgit_core.datasets import image_folder
from maskgit_core.errors import ConfigError, DataError

AUTO = "auto"
#: Tokenizers that are trained here; any other is published and only used.
TRAINED = ("vq", "vqgan")
#: Below this many pictures a model mostly repeats what it was shown.
FEW = 2000
#: Pictures whose headers are read to know the sizes.
_LOOKED_AT = 200


@dataclass(frozen=True)
class Sizes:
    """Sizes that suit a number of pictures, and the training time that so many pictures are worth.

    Attributes:
        image_size, downsample_factor: pixels.
        codebook_size: of a tokenizer trained here.
        tokenizer_steps, train_steps: of batches of 16 and 32 (both are the experiment's to change).
        dim, num_layers, num_heads: of the transformer.
    """

    image_size: int
    downsample_factor: int
    codebook_size: int
    tokenizer_steps: int
    train_steps: int
    dim: int
    num_layers: int
    num_heads: int


#: From so many pictures on.
TABLE = {
    0: Sizes(64, 8, 256, 3_000, 3_000, 128, 4, 4),
    2_000: Sizes(64, 8, 512, 8_000, 10_000, 192, 6, 6),
    20_000: Sizes(128, 8, 1024, 30_000, 60_000, 384, 8, 6),
    200_000: Sizes(256, 16, 4096, 200_000, 300_000, 768, 24, 8),
}


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: how many, in how many classes (None: flat), smallest and median shorter side in pixels."""

    num_pictures: int
    classes: int | None
    smallest: int
    median: int


def fitted(config: Options) -> Block:
    """The config with every `auto` replaced; lines that say what was found and chosen are under its key `found`.

    Without any `auto` it is what it was.

    Raises:
        ConfigError: `auto` where nothing can be chosen. DataError: the folder is missing or has no pictures.
    """
    if not _has_auto(config):
        return dict(config)
    dataset = config.get("dataset")
    if not isinstance(dataset, Mapping) or dataset.get("name") != "image_folder":
        raise ConfigError("dataset.name: sizes are chosen (`auto`) for image_folder alone; take it, or set every size")
    pictures = look(resolve(dataset["root"]), str(dataset.get("split", "")))
    published = str((config.get("tokenizer") or {}).get("name")) not in TRAINED
    chosen = _choices(pictures, published)
    if published:
        config = _with_published(config)
    filled = _filled(config, chosen)
    return {**filled, "found": _said(pictures, filled, published)}


@cache
def look(root: Path, split: str) -> Pictures:
    """Counts the pictures and classes of a folder and reads the headers of a spread sample."""
    from PIL import Image

    images = image_folder.Dataset(root=str(root), split=split)
    names = [name for name, _ in images.files]
    sides = []
    for name in names[:: max(1, len(names) // _LOOKED_AT)]:
        try:
            with Image.open(images.folder / name) as picture:
                sides.append(min(picture.size))
        except (OSError, ValueError, SyntaxError):
            continue
    if not sides:
        raise DataError(f"{images.folder}: none of the pictures looked at can be read; replace them")
    return Pictures(len(names), images.num_classes, min(sides), int(median(sides)))


def _choices(pictures: Pictures, published: bool) -> Block:
    """Values by dotted key."""
    sizes = TABLE[max(least for least in TABLE if pictures.num_pictures >= least)]
    factor = sizes.downsample_factor
    side = 256 if published else max(32, min(sizes.image_size, pictures.median // factor * factor))
    return {
        "dataset.image_size": side,
        "tokenizer.downsample_factor": factor if side > 32 else 4,
        "tokenizer.codebook_size": sizes.codebook_size,
        "train_tokenizer.num_train_steps": sizes.tokenizer_steps,
        "train.num_train_steps": sizes.train_steps,
        "train.label_drop": 0.0 if pictures.classes is None else 0.1,
        "model.dim": sizes.dim,
        "model.num_layers": sizes.num_layers,
        "model.num_heads": sizes.num_heads,
        "sampler.guidance_scale": 1.0 if pictures.classes is None else 2.5,
    }


def _with_published(config: Options) -> Block:
    """The config without the training of a tokenizer: the published one fills its place."""
    steps = {
        name: {**step, "needs": _without(step.get("needs"))} if isinstance(step, Mapping) else step
        for name, step in config["pipeline"]["steps"].items()
        if name != "train_tokenizer"
    }
    kept = {name: value for name, value in config.items() if name != "train_tokenizer"}
    own = {name: value for name, value in config["tokenizer"].items() if value != AUTO}
    resources = {n: v for n, v in (config.get("resources") or {}).items() if n != "train_tokenizer"}
    return {**kept, "tokenizer": own, "resources": resources, "pipeline": {**config["pipeline"], "steps": steps}}


def _without(needs: Any) -> object:
    if isinstance(needs, Mapping):
        return {param: step for param, step in needs.items() if step != "train_tokenizer"}
    return [step for step in needs or [] if step != "train_tokenizer"]


def _has_auto(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_auto, value.values()))
    return bool(value == AUTO)


def _filled(value: object, chosen: Options, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _filled(inner, chosen, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if not isinstance(value, str) or value != AUTO:
        return value
    if key not in chosen:
        raise ConfigError(f"{key}: nothing can be chosen here (`auto`); set it to a value")
    return chosen[key]


def _said(pictures: Pictures, config: Options, published: bool) -> list[str]:
    classes = "no classes" if pictures.classes is None else f"{pictures.classes} classes"
    size = config["dataset"]["image_size"]
    tokenizer = config["tokenizer"]["name"]
    lines = [
        f"found: {pictures.num_pictures:,} pictures, {classes}, shorter side {pictures.median} px "
        f"(smallest {pictures.smallest})",
        f"chosen: {size} x {size} pixels; tokenizer {tokenizer}"
        + ("" if published else f", {config['tokenizer']['downsample_factor']} pixels a token, "
           f"{config['tokenizer']['codebook_size']} codes, "
           f"{_number(config['train_tokenizer']['num_train_steps'])} steps")
        + f"; model dim {config['model']['dim']}, {config['model']['num_layers']} layers, "
        f"{_number(config['train']['num_train_steps'])} steps; every one can be set",
    ]  # fmt: skip
    if pictures.num_pictures < FEW:
        instead = "" if published else "; a published tokenizer (tokenizer=maskgit_vqgan) is not trained on them"
        lines.append(
            f"warning: {pictures.num_pictures:,} pictures are few (below {FEW:,}): expect copies of them{instead}"
        )
    if isinstance(size, int) and pictures.smallest < size:
        lines.append(f"warning: some pictures are smaller than {size} pixels and are enlarged")
    return lines


def _number(value: object) -> str:
    """A number with its thousands apart; what is none (a mistake that the checker names) as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
