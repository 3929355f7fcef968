"""How a benchmark prints what it measured, and where the original's files come from as a peer.

A JSON object a line, which `python -m tools.bench` puts on the page. The PyTorch MaskGIT's own files are fetched by
whoever runs the benchmarks and are never part of this project:

    git clone https://github.com/xyfJASON/maskgit-pytorch
    MASKGIT_ORIGINAL=maskgit-pytorch python -m tools.bench training

Without the variable these rows are left out, and said to be.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

Measured = float | Sequence[float] | None


def figure(name: str, ours: Measured, theirs: Measured, unit: str, note: str, *, higher: bool = False) -> None:
    """Prints both sides of a comparison, with medians and ranges where there are several rounds.

    Args:
        ours, theirs: one number, or one per round; None where it could not be measured.
        higher: whether more is better. The ratio is above 1 where ours is better.
    """
    mine, other = _middle(ours), _middle(theirs)
    ratio = (mine / other if higher else other / mine) if mine and other else None
    line = {"name": name, "ours": _shown(ours), "theirs": _shown(theirs), "ratio": ratio and float(f"{ratio:.3g}")}
    print(json.dumps({**line, "unit": unit, "note": note}), flush=True)


def budget(name: str, measured: float | None, limit: float, unit: str, note: str) -> None:
    """Prints a number beside the most it may be; no peer, so no ratio."""
    line = {"name": name, "measured": _shown(measured), "limit": f"{limit:.4g}", "unit": unit, "note": note}
    print(json.dumps(line), flush=True)


def named(package: str) -> str:
    """A peer with its installed version, as notes name it."""
    return f"{package} {version(package)}"


def original(file: str) -> Any:
    """The module in `file` ("models/ema.py") of the checkout that MASKGIT_ORIGINAL names; None where it names none.

    Packages are entered as folders, without their `__init__` files, which import what is not needed here.
    """
    root = os.environ.get("MASKGIT_ORIGINAL")
    if not root or not Path(root, file).is_file():
        told = f"no {file} below MASKGIT_ORIGINAL={root}" if root else "MASKGIT_ORIGINAL is not set"
        print(f"the original's rows are left out: {told}", file=sys.stderr)
        return None
    parts = ["original", *Path(file).with_suffix("").parts]
    for depth in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(Path(root, *parts[1:depth]))]
        sys.modules.setdefault(package.__name__, package)
    name = ".".join(parts)
    spec = importlib.util.spec_from_file_location(name, Path(root, file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _middle(values: Measured) -> float | None:
    return median(values) if isinstance(values, Sequence) else values


def _shown(values: Measured) -> str:
    if values is None:
        return "not measured"
    if not isinstance(values, Sequence):
        return f"{values:.4g}"
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g}, {len(values)} rounds)"
