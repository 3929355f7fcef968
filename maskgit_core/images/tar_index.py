"""An index of the members of large tar files, so that pictures are read from them in any order without unpacking.

The index of a tar is made once (one pass over its headers) and kept under the user's cache, keyed by the file's path,
size and time. A tar inside a tar is indexed in place, as ImageNet's training set needs. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

from maskgit_core.errors import DataError, refused_as
from maskgit_core.files import remember

_VERSION = 1


class Member(NamedTuple):
    """A file in a tar: its name (`outer.tar/inner` for one in a tar in the tar), where its bytes begin, how many."""

    name: str
    offset: int
    size: int


def index_of(path: Path) -> list[Member]:
    """The members of a tar that are files, in the order of the tar.

    Raises:
        DataError: the file is missing or not a whole, uncompressed tar.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); put the tar there") from error
    kept = _kept(path)
    state = [_VERSION, str(path.absolute()), stat.st_size, stat.st_mtime_ns]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(kept.read_text())
        if stored["state"] == state:
            return [Member(*entry) for entry in stored["members"]]
    members = _scan(path)
    remember(kept, {"state": state, "members": members})
    return members


def read_member(path: Path, member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        DataError: the tar is gone or shorter than its index states.
    """
    try:
        with Path(path).open("rb") as file:
            there = max(0, os.fstat(file.fileno()).st_size - member.offset)  # never ask memory for what is not there
            file.seek(member.offset)
            data = file.read(min(member.size, there))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); put the tar back") from error
    if len(data) != member.size:
        raise DataError(f"{path}: ends inside {member.name}; the tar is cut short, get it again")
    return data


def _kept(path: Path) -> Path:
    home = Path(os.environ.get("MASKGIT_HOME") or "~/.cache/maskgit").expanduser()
    return home / "tar_indexes" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]}.json"


def _scan(path: Path) -> list[Member]:
    members: list[Member] = []
    told = f"{path}: not a whole uncompressed tar ({{reason}}); get it again"
    with refused_as(DataError, told), path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if not info.isfile():
                continue
            if info.name.endswith(".tar"):
                members += _inner(file, info)
            else:
                members.append(Member(info.name, info.offset_data, info.size))
    if members and members[-1].offset + members[-1].size > path.stat().st_size:
        raise DataError(f"{path}: ends inside {members[-1].name}; the tar is cut short, get it again")
    return members


def _inner(file: IO[bytes], outer: tarfile.TarInfo) -> list[Member]:
    here = file.tell()
    file.seek(outer.offset_data)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        members = [Member(f"{outer.name}/{i.name}", i.offset_data, i.size) for i in tar if i.isfile()]
    file.seek(here)
    return members
