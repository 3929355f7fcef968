"""The PyTorch MaskGIT's own files as a peer: fetched by whoever runs the benchmark, never part of this project.

    git clone https://github.com/xyfJASON/maskgit-pytorch
    MASKGIT_ORIGINAL=maskgit-pytorch python -m tools.bench training

Without the variable these rows are left out, and said to be.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any


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
