"""Lines of a search's journal: Optuna's operations as JSON, each with a checksum, and what is wrong with a journal.

It imports no Optuna, so that `maskgit verify` can look at searches where that is not installed.

A line's `crc` is the CRC-32 (hex) of all that stands before it in its line, begun with the checksum of the line before
it: a changed, lost, doubled or moved line is found, but not the loss of whole lines at the end. Lines of earlier
releases have none.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.store.typed_json import Block, DamagedError, Options
from maskgit_core.files import open_file

JOURNAL = "journal.log"
_CRC = ',"crc":"'
_BEGIN = b'{"op_code":'
_TAIL = len('xxxxxxxx"}\n')
_REMEDY = "move it away and give the search's command again, which finds what the trials have made"


class Place(NamedTuple):
    """Where a line begins: bytes from the start, lines before it, and the checksum of the one before it (0: none)."""

    offset: int = 0
    lines: int = 0
    crc: int = 0


def encode(log: Options, before: int) -> tuple[bytes, int]:
    """An operation as a line, and its checksum; `before` is that of the line before it."""
    text = json.dumps(log, separators=(",", ":"))[:-1]  # ASCII
    crc = zlib.crc32(text.encode(), before)
    return f'{text}{_CRC}{crc:08x}"}}\n'.encode(), crc


def read(path: Path, start: Place | None = None) -> Iterator[tuple[Block, Place]]:
    """The operations from a place on, each with the place after it; what a writer has not ended yet is left out.

    Raises:
        DamagedError: a line is not what was written.
    """
    place = start or Place()
    try:
        with open_file(path) as file:
            file.seek(place.offset)
            data = file.read()
    except IsADirectoryError:
        raise DamagedError(path, "is a folder, not a file", _REMEDY) from None
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        at = line.rfind(_CRC.encode())
        before, crc = place.crc, zlib.crc32(line[:at], place.crc) if at >= 0 else 0
        place = Place(place.offset + len(line), place.lines + 1, crc)
        is_sound = line[at + len(_CRC) :] == b'%08x"}\n' % crc if at >= 0 else not before
        log = _parsed(line) if is_sound else None
        if log is None:
            raise DamagedError(path, f"line {place.lines} is not what was written", _REMEDY)
        yield log, place


def _parsed(line: bytes) -> Block | None:
    try:
        log = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return {key: value for key, value in log.items() if key != "crc"} if isinstance(log, dict) else None


def cut_torn_line(path: Path) -> int:
    """Cuts off what a killed writer left of a line; returns the checksum of the last whole one (0: none).

    Raises:
        DamagedError: the file does not end as a journal does, so that nothing is cut.
    """
    try:
        with open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - 65536)
                file.seek(begin)
                at = file.read(end - begin).rfind(b"\n")
                end = begin + at + 1 if at >= 0 else begin
                if at >= 0:
                    break
            file.seek(end)
            torn = file.read(len(_BEGIN))
            if torn != _BEGIN[: len(torn)]:
                raise DamagedError(path, "its last line is not what was written", _REMEDY)
            if end < size:
                file.truncate(end)
                file.flush()
                os.fsync(file.fileno())
            file.seek(max(0, end - len(_CRC) - _TAIL))
            last = file.read(len(_CRC) + _TAIL)
    except IsADirectoryError:
        raise DamagedError(path, "is a folder, not a file", _REMEDY) from None
    try:
        return int(last[-_TAIL:-3], 16) if last.startswith(_CRC.encode()) else 0
    except ValueError:
        return 0  # found when it is read


def journal_damage(path: Path) -> DamagedError | None:
    """The damage of a journal, if there is any."""
    try:
        for _ in read(path):
            pass
    except DamagedError as error:
        return error
    return None
