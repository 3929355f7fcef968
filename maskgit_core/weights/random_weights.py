"""Random weights of published names and shapes, for trials where the published file is not at hand.

The files are small: the rows of a tensor are overlapping pieces of one short row of random numbers, and `torch.save`
keeps such a view as it is. Read back, they have the full shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from maskgit_core.errors import WeightsError
from maskgit_core.weights.registry import by_name

LAYOUTS = Path(__file__).with_name("layouts")
#: Random numbers of a tensor beyond the length of its rows.
_SPARE = 4096


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a file in `layouts/`, by the name of that file."""
    shapes = {}
    for line in (LAYOUTS / f"{name}.txt").read_text().splitlines():
        if match := re.match(r"([^#\s]\S*) \[([\d, ]*)\]", line):
            shapes[match[1]] = tuple(int(n) for n in match[2].split(",") if n.strip())
    return shapes


def write_tokenizer(registered: str, path: Path, seed: int = 0, *, small: bool = False) -> None:
    """A file that a published tokenizer reads strictly.

    Args:
        registered: its name in the weights registry.
        path: where it is written.
        seed: of the random numbers.
        small: fewer layers and smaller images, where the tokenizer reads its sizes from the file (`small_layout`).

    Raises:
        WeightsError: no names and shapes are known for these weights.
    """
    entry = by_name(registered)
    known = entry.layout
    if not known:
        raise WeightsError(
            f"{registered}: its names and shapes are not known, so no toy weights can be made; "
            f"run `maskgit weights fetch {registered}`"
        )
    shapes = {name: shape for name, shape in layout(known).items() if not name.startswith("loss.")}
    if small:
        module = import_module("maskgit_core." + entry.component.replace("/", "."))
        shapes = getattr(module, "small_layout", dict)(shapes)
    torch.save(random_state(shapes, seed), path)


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tensors with products of variance 1, scales around 1, small offsets and codes of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _tensor(name, shape, generator) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    count = math.prod(shape)
    row = math.prod(shape[1:])
    numbers = torch.rand(min(count, row + max((_SPARE, *shape[:1]))), generator=generator) * 2 - 1
    if name.endswith("embedding.weight"):
        numbers *= math.sqrt(3)
    elif len(shape) > 1:
        numbers *= math.sqrt(3 / row)
    elif name.endswith("weight"):
        numbers = 1 + 0.2 * numbers
    else:
        numbers *= 0.1
    if len(numbers) == count:
        return numbers.view(shape)
    inner = torch.empty(shape[1:], device="meta").stride()
    return torch.as_strided(numbers, shape, ((len(numbers) - row) // (shape[0] - 1), *inner))
