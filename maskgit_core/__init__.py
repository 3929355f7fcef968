"""The science: tensors in, tensors out.

`import maskgit_core as mg` gives `mg.load_tokenizer`, `mg.load_model`, `mg.load_critic`, `mg.sample` and `mg.show` (see
`trained.py`).

MKL, PyTorch's matrix library on Intel CPUs, splits the sums of small products among its threads, so that a row would
depend on the number of rows beside it and on the number of threads. Its strict mode does not, at the same speed.
MKL asks for it at its first product; on other makers' CPUs the mode may be slow and is left alone.
"""

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

with suppress(OSError), open("/proc/cpuinfo", "rb") as _cpus:
    if b"GenuineIntel" in _cpus.read(4096):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__all__ = ["load_critic", "load_model", "load_tokenizer", "sample", "show"]


def __getattr__(name: str) -> Any:
    """The names above, imported when first asked for: they bring torch."""
    if name in __all__:
        return getattr(import_module("maskgit_core.trained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
