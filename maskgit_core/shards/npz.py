"""Token shards to and from a folder of npz files, one an image, as xyfJASON/maskgit-pytorch caches them.

There a file `0.npz`, `1.npz`, ... holds `idx` and `idx_flip` (H * W ids, int64), `y` (the class, where there is one),
and with its option `--full` also `h` and `h_flip`, the encoder's output (C, H, W).

Shapes: N samples, V variants, H × W grid, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskgit_core.errors import DataError, refused_as
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, read_index, write_manifest, write_shard

_IDS, _LATENTS = ("idx", "idx_flip"), ("h", "h_flip")


def export_npz(source: Path, target: Path, report: Callable[[int], object] = lambda done: None) -> int:
    """Writes one npz file a sample into `target`; returns how many. Latents go along where the cache has them.

    Raises:
        DataError: the cache has variants that the npz form cannot hold, or `target` holds files already.
    """
    shards = TokenShards(source)
    if shards.num_variants > 2 or "boxes.npy" in shards.layout.members:
        names = ", ".join(shards.manifest.get("variants", [])[:4])
        raise DataError(
            f"{source}: the npz form holds an image and its mirror image, not [{names}, ...]; use the shards"
        )
    target.mkdir(parents=True, exist_ok=True)
    if next(target.glob("*.npz"), None) is not None:
        raise DataError(f"{target}: holds npz files already; name a new folder")
    for first in range(0, len(shards), 1024):
        indices = np.arange(first, min(first + 1024, len(shards)))
        variants = [shards.gather(indices, variant) for variant in range(shards.num_variants)]
        latents = shards.latents(indices) if shards.layout.latents else None
        for row, index in enumerate(indices.tolist()):
            data = {name: tokens[row] for name, (tokens, _) in zip(_IDS, variants, strict=False)}
            if latents is not None:
                data |= {name: part.astype(np.float32) for name, part in zip(_LATENTS, latents[row], strict=False)}
            if (label := variants[0][1][row]) >= 0:
                data["y"] = label
            np.savez(target / f"{index}.npz", **data)
        report(int(indices[-1]) + 1)
    return len(shards)


def import_npz(
    source: Path,
    target: Path,
    *,
    codebook_size: int,
    grid: tuple[int, int] | None = None,
    num_classes: int | None = None,
    shard_size: int = 4096,
    report: Callable[[int], object] = lambda done: None,
) -> int:
    """Makes token shards in `target` from a folder of npz files; returns the number of samples.

    Files count in the order of their numbers (else of their names). Interrupted, it goes on with the missing shards.

    Args:
        codebook_size: of the tokenizer that made them; the files do not say.
        grid: (H, W); None: square.
        num_classes: None: one more than the highest class, or no classes where the files have none.
        shard_size: samples per shard.

    Raises:
        DataError: no npz files, or one that cannot be read or does not fit; names the file.
    """
    files = sorted(source.glob("*.npz"), key=_place)
    if not files:
        raise DataError(f"{source}: no npz files here; name the folder that holds 0.npz, 1.npz, ...")
    with_flip, with_latents, length = _form(files[0])
    side = math.isqrt(length)
    grid = grid or (side, side)
    if grid[0] * grid[1] != length:
        raise DataError(f"{files[0]}: {length} ids do not fit a grid of {grid[0]} x {grid[1]}; give the right --grid")
    layout = Layout(codebook_size, grid, 1 + with_flip, latents=with_latents)
    indexes = []
    for number, first in enumerate(range(0, len(files), shard_size)):
        part = files[first : first + shard_size]
        index = read_index(target, number)
        if index is None or index["count"] != len(part):
            index = write_shard(target, number, layout, _read(part, layout))
        indexes.append(index)
        report(min(first + shard_size, len(files)))
    top = max(int(label) for index in indexes for label in index["class_counts"])
    classes = num_classes if num_classes is not None else (top + 1 if top >= 0 else None)
    variants = ["original", "flip"][: layout.num_variants]
    write_manifest(target, layout, indexes, num_classes=classes, variants=variants, dataset={"name": "npz"})
    return len(files)


def _place(path: Path) -> tuple[bool, int, str]:
    """Sorts by number, then by name."""
    return (not path.stem.isdigit(), int(path.stem) if path.stem.isdigit() else 0, path.stem)


def _form(path: Path) -> tuple[bool, tuple[int, int, int] | None, int]:
    """The layout of the first file: mirrored ids or not, the shape of latents, the number of ids."""
    data = _load(path)
    if "idx" not in data:
        raise DataError(f"{path}: holds [{', '.join(data)}], not idx; these are not cached tokens")
    latents = tuple(int(n) for n in data["h"].shape) if "h" in data else None
    if latents is not None and len(latents) != 3:
        raise DataError(f"{path}: h has shape {latents}; expected (channels, height, width)")
    return "idx_flip" in data, latents, int(data["idx"].size)


def _load(path: Path) -> dict[str, np.ndarray]:
    with refused_as(DataError, f"{path}: cannot be read as npz without pickled objects ({{reason}}); remove it"):
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files if name in (*_IDS, *_LATENTS, "y")}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":  # numpy gives other members as bytes
                raise DataError(f"{path}: {name} holds no numbers; remove or replace it")
        return arrays


def _read(files: list[Path], layout: Layout) -> Samples:
    """The content of one shard from its files."""
    shape = (len(files), layout.num_variants)
    tokens = np.empty((*shape, *layout.grid), dtype=np.int64)
    latents = np.empty((*shape, *layout.latents), dtype=np.float16) if layout.latents else None
    labels = np.full(len(files), -1, dtype=np.int64)
    for row, path in enumerate(files):
        data = _load(path)
        try:
            for variant, name in enumerate(_IDS[: layout.num_variants]):
                tokens[row, variant] = data[name].reshape(layout.grid)
            if latents is not None:
                for variant, name in enumerate(_LATENTS[: layout.num_variants]):
                    latents[row, variant] = data[name]
            if "y" in data:
                labels[row] = int(data["y"])
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path}: does not hold what the first file holds ({error}); remove or replace it"
            ) from None
        low, high = int(tokens[row].min()), int(tokens[row].max())
        if not 0 <= low <= high < layout.codebook_size:
            raise DataError(
                f"{path}: ids from {low} to {high} do not lie in [0, {layout.codebook_size}); "
                "give the right --codebook-size"
            )
    return Samples([path.stem for path in files], labels, tokens, None, latents)
