"""The science: tensors in, tensors out.

MKL, PyTorch's matrix library on Intel CPUs, splits the sums of small products among its threads, so that a row would
depend on how many others stand beside it and on the number of threads. Its strict mode does not, at the same speed.
MKL asks for it at its first product; on other makers' CPUs the mode may be slow and is left alone.
"""

import os
from contextlib import suppress

with suppress(OSError), open("/proc/cpuinfo", "rb") as _cpus:
    if b"GenuineIntel" in _cpus.read(4096):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
