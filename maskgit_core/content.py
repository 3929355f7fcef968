"""Locations of outside data, and the digest of their content.

A digest names content, never a place: moving a folder changes nothing, replacing one picture in it changes the digest.
File digests are kept in a small cache keyed by path, size and times, so that asking again costs one stat a file.
Import-light on purpose: a plan calls this for every dataset.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskgit_core.errors import DataError
from maskgit_core.files import remember

BUNDLED = Path(__file__).parent / "datasets" / "bundled"

#: Above this many bytes a folder is named by names, sizes and a fixed sample of its contents.
FULL_DIGEST_BYTES = 8 * 1024**3
#: How many files, and how many pieces of how many bytes in each, the sample of a larger folder reads.
SAMPLED_FILES = 256
PIECE_BYTES = 256 * 1024
_CHUNK = 1024 * 1024
_VERSION = 1


class Digest(NamedTuple):
    """A content digest: sha256 in hex, and a note where not every byte was read (else None)."""

    sha256: str
    note: str | None


def resolve(value: str | os.PathLike[str] | list[str] | tuple[str, ...]) -> Path:
    """The path that `value` means.

    Args:
        value: a path; `~` is the home folder; `bundled:NAME` is data that comes with the package; of a list, the
            first that exists.

    Raises:
        DataError: nothing is there.
    """
    if isinstance(value, list | tuple):
        candidates = [_expand(item) for item in value]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        tried = ", ".join(map(str, candidates)) or "an empty list"
        raise DataError(f"{tried}: none of these exists; put the data at one of them or set the path to where it is")
    path = _expand(value)
    if not path.exists():
        if str(value).startswith("bundled:"):
            there = ", ".join(sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()))
            raise DataError(f"{value}: no such bundled data; one of [{there}]")
        raise DataError(f"{path}: there is no such file or folder; put the data there or set the path to where it is")
    return path


def _expand(value: str | os.PathLike[str]) -> Path:
    text = os.fspath(value)
    if text.startswith("bundled:"):
        name = text.removeprefix("bundled:")
        if not name or Path(name).name != name:
            raise DataError(f"{text}: a bundled name is one plain word")
        return BUNDLED / name
    return Path(text).expanduser().absolute()


def digest(path: Path, cache: Path | None = None) -> str:
    """The content digest of a file or folder as sha256 in hex; see `describe`."""
    return describe(path, cache).sha256


def describe(path: Path, cache: Path | None = None) -> Digest:
    """The content digest of a file or folder.

    Relative names, sizes and contents count; hidden files (names that begin with a dot) do not, nor does `path` itself.
    Links are followed. `*-ubyte.gz` (the idx files of MNIST-like sets) count unpacked and without the ending,
    because packagers compress them differently. Folders above `FULL_DIGEST_BYTES` are sampled, which the note says.

    Args:
        path: an existing file or folder.
        cache: folder for the table of known file digests; None: read every file.

    Raises:
        DataError: nothing is there, the folder is empty or a file cannot be read.
    """
    path = Path(path)
    table = _Table(cache, path)
    if path.is_file():
        whole = table.entry(path.name, path, path.stat())
        table.save()
        return Digest(_hash_lines(f"file {whole['size']} {whole['sha256']}"), None)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder; put the data there or set the path to where it is")
    files = sorted(_walk(path))
    if not files:
        raise DataError(f"{path}: the folder holds no files; put the data there or set the path to where it is")
    for name, _, _ in files:
        if not _is_text(name):
            raise DataError(f"{path}: a file's name is not UTF-8 text ({name!a}); rename it")
    total = sum(stat.st_size for _, _, stat in files)
    if total > FULL_DIGEST_BYTES:
        return _sampled(files, total, table)
    lines = {}
    for name, file, stat in files:
        entry = table.entry(name, file, stat)
        lines[_logical_name(name)] = f"{_logical_name(name)}\0{entry['size']}\0{entry['sha256']}"
    table.save()
    return Digest(_hash_lines(*(lines[name] for name in sorted(lines))), None)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sampled(files: list[tuple[str, Path, os.stat_result]], total: int, table: _Table) -> Digest:
    """Names and sizes of all files; of the `SAMPLED_FILES` whose hashed names sort first, three pieces each."""
    chosen = {
        name
        for _, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name, _, _ in files)[:SAMPLED_FILES]
    }
    lines = [f"{name}\0{stat.st_size}" for name, _, stat in files]
    for name, file, stat in files:
        if name in chosen:
            lines.append(f"{name}\0{table.entry(name, file, stat, pieces=True)['sha256']}")
    table.save()
    note = (
        f"sampled: {len(files)} names and sizes ({total / 1e9:.1f} GB) and pieces of {len(chosen)} files, "
        "not every byte"
    )
    return Digest(_hash_lines("sampled", *lines), note)


def _walk(folder: Path, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Any]:
    """Yields (relative name with /, path, stat) of every file that is not hidden; a loop of links is cut."""
    try:
        stat = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); mend its permissions") from error
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            continue
        try:
            yield f"{prefix}{entry.name}", Path(entry.path), entry.stat()
        except OSError as error:
            raise DataError(f"{entry.path}: cannot be read ({error.strerror}); remove or mend it") from error


def _logical_name(name: str) -> str:
    return name.removesuffix(".gz") if name.endswith("-ubyte.gz") else name


def _hash_lines(*lines: str) -> str:
    hashed = hashlib.sha256(f"maskgit content {_VERSION}\n".encode())
    for line in lines:
        hashed.update(line.encode(errors="surrogateescape") + b"\n")
    return hashed.hexdigest()


def _hash_file(path: Path, size: int, pieces: bool) -> dict[str, Any]:
    """Size and sha256 of a file's content (idx `.gz` unpacked), or the sha256 of its head, middle and tail."""
    hashed, counted = hashlib.sha256(), 0
    try:
        if pieces and size > 3 * PIECE_BYTES:
            with path.open("rb") as file:
                for offset in (0, (size - PIECE_BYTES) // 2, size - PIECE_BYTES):
                    file.seek(offset)
                    hashed.update(file.read(PIECE_BYTES))
            return {"size": size, "sha256": hashed.hexdigest()}
        packed = path.name.endswith("-ubyte.gz")
        with gzip.open(path) if packed else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hashed.update(chunk)
                counted += len(chunk)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend or replace it") from error
    return {"size": counted, "sha256": hashed.hexdigest()}


class _Table:
    """Known digests of the files below one path, kept in one JSON file of the cache folder."""

    def __init__(self, cache: Path | None, root: Path) -> None:
        name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:24]
        self._path = None if cache is None else Path(cache) / f"{name}.json"
        self._known: dict[str, list[Any]] = {}
        self._seen: dict[str, list[Any]] = {}
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # read again instead
                self._known = _sound(json.loads(self._path.read_text()))

    def entry(self, name: str, path: Path, stat: os.stat_result, pieces: bool = False) -> dict[str, Any]:
        # ctime catches what mtime misses: a file replaced by one whose mtime was set back (cp -p, rsync -t).
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, pieces]
        known = self._known.get(name)
        if known is not None and known[0] == state:
            self._seen[name] = known
        else:
            self._seen[name] = [state, _hash_file(path, stat.st_size, pieces)]
        entry: dict[str, Any] = self._seen[name][1]
        return entry

    def save(self) -> None:
        """Keeps the table if it changed; a cache that cannot be written only costs time."""
        if self._path is None or self._seen == self._known:
            return
        remember(self._path, {"version": _VERSION, "files": self._seen, "check": _check(self._seen)})


def _check(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sound(stored: Any) -> dict[str, list[Any]]:
    """The files of a stored table; empty where it is of another version or damaged (older ones have no check)."""
    files: dict[str, list[Any]] = stored["files"]
    if stored["version"] != _VERSION or stored.get("check", _check(files)) != _check(files):
        return {}
    for state, entry in files.values():
        if not (isinstance(state, list) and isinstance(entry["sha256"], str) and isinstance(entry["size"], int)):
            return {}
    return files
