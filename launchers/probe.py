"""A tiny call that shows whether jobs can work at all: their Python, their imports, the shared disk."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from maskgit_core.files import write_json


def probe(folder: str, modules: Sequence[str]) -> int:
    """Imports `modules` and writes what was found to `<folder>/probe.json`; returns 1 where an import failed."""
    trouble = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken environment throws is what the user must see
            trouble.append(f"import {name}: {type(error).__name__}: {error}")
    note = {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "trouble": trouble,
    }
    write_json(Path(folder) / "probe.json", note)
    return 1 if trouble else 0
