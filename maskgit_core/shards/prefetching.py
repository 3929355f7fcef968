"""Asks the kernel to read parts of mapped files that will be needed soon, where they are not in memory yet.

A row that is read where it is not in memory waits for the disk, one row after the other. Told of many at once, the
kernel reads them side by side: on networked disks that hides the wait. (On one local disk, cold, 1.8 GB of tokens took
as long either way, at 0.42 CPU seconds against 0.54 for 15,000 rows; 150 MB took 4 times as long with requests.)
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_PAGE = mmap.PAGESIZE
_WILL_NEED = 3  # the same on Linux and macOS
#: Rows that are looked at to tell whether the rest is in memory: a call for every row costs more than reading it.
NUM_LOOKED_AT = 32
#: Bytes that Linux reads around a row that is not in memory (its usual setting).
READ_AROUND = 128 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def will_need(starts_N: np.ndarray, size: int) -> int:
    """Has the kernel begin to read [start, start + size) for each address, unless a sample of them is in memory.

    Args:
        starts_N: int64 addresses inside mappings; any shape.

    Returns:
        number of requests to the kernel: neighbours in one.
    """
    first_N = np.unique(starts_N // _PAGE)
    span = -(-size // _PAGE) + 1
    looked_at = first_N[:: max(1, len(first_N) // NUM_LOOKED_AT)].tolist()
    if all(_is_resident(page * _PAGE) for page in looked_at):
        return 0
    breaks = np.flatnonzero(np.diff(first_N) > span) + 1
    begins, ends = first_N[np.r_[0, breaks]], first_N[np.r_[breaks - 1, len(first_N) - 1]]
    advise = _libc.madvise
    for begin, end in zip((begins * _PAGE).tolist(), ((ends + span) * _PAGE).tolist(), strict=True):
        advise(begin, end - begin, _WILL_NEED)  # a hint: what goes wrong shows when the row is read
    return len(begins)


def _is_resident(address: int) -> bool:
    resident = ctypes.c_ubyte()
    return _libc.mincore(address, 1, ctypes.byref(resident)) != 0 or bool(resident.value & 1)
