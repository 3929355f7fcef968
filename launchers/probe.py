"""A tiny call that shows whether jobs can work at all: their Python, their imports, the shared disk, their GPU."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from maskgit_core.files import write_json


def probe(folder: str, modules: Sequence[str], gpus: int = 0) -> int:
    """Imports `modules`, looks at the GPU and writes the findings to `<folder>/probe.json`; 1 where something failed.

    Args:
        gpus: how many the job was given.
    """
    trouble = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken environment throws is what the user must see
            trouble.append(f"import {name}: {type(error).__name__}: {error}")
    told = ""
    if gpus and not trouble:
        import torch

        if torch.cuda.is_available():
            told = f"{torch.cuda.get_device_name(0)}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
        else:
            trouble.append(f"the job was given {gpus} GPU, torch {torch.__version__} sees none (driver, CUDA build?)")
    note = {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": told,
        "scontrol": shutil.which("scontrol") is not None,
        "trouble": trouble,
    }
    write_json(Path(folder) / "probe.json", note)
    return 1 if trouble else 0
