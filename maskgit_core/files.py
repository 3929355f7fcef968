"""Small files written whole or not at all, on local and network disks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskgit_core.errors import ArtifactError, DiskFullError


def read_umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = read_umask()


def write_for_group(root: Path) -> None:
    """From here on the group may read, write and enter all that this process makes, where it may do so with `root`.

    Whoever owns the store says so once (`chgrp lab runs; chmod 2775 runs`); nobody's umask then shuts the others out.
    """
    global _UMASK
    with contextlib.suppress(OSError):
        if root.stat().st_mode & stat.S_IWGRP and _UMASK & stat.S_IRWXG:
            _UMASK &= ~stat.S_IRWXG
            os.umask(_UMASK)


def share_with_group(path: Path) -> None:
    """Gives a file that a library made with a mode of its own the one that the umask asks for."""
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~_UMASK)


#: Errors of a disk or of a network file system that are nobody's mistake.
DISK_FAILED = (errno.EIO, errno.ESTALE, errno.EREMOTEIO)


def explain(error: OSError, path: Path) -> ArtifactError:
    """One line for the disk errors a user can mend: full, read-only, no permission."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EROFS: "the file system is read-only; choose a folder you can write to (for a run: paths.store)",
        errno.EACCES: "no permission to write here; choose a folder you can write to (for a run: paths.store)",
        errno.EPERM: "not permitted to write here; choose a folder you can write to (for a run: paths.store)",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder (for a run: paths.store)",
        errno.EISDIR: "is a folder where a file belongs; move it away and run the same command again",
        errno.EEXIST: "is a file, not a folder; choose another folder (for a run: paths.store)",
    }
    failed = f"the disk or network file system failed ({error.strerror}); run the same command again once it is well"
    reasons |= dict.fromkeys(DISK_FAILED, failed)
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ArtifactError
    return kind(f"{path}: {reasons.get(error.errno or 0, f'cannot be written ({error.strerror})')}")


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes `data` to a temporary name beside `path`, syncs it and renames it into place."""
    publish(path, lambda temporary: temporary.write_bytes(data), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
    write_bytes(path, (text + "\n").encode(), durable=durable)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy and torch scalars
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, opened for reading; what else stands in its place (a pipe, a device) is not waited for.

    Raises:
        IsADirectoryError: a folder, a pipe or a device. OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise IsADirectoryError(errno.EISDIR, "is no regular file", str(path))


def read_json(path: Path) -> Any | None:
    """The JSON in `path`, or None where there is no such file or it is not (yet) whole."""
    try:
        with open_file(path) as file:
            return json.loads(file.read().decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None  # ValueError: also numbers of 5,000 digits
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def publish(
    path: Path,
    write: Callable[[Path], object],
    *,
    durable: bool = True,
    replace: bool = True,
    sync_folder: bool = True,
) -> bool:
    """Calls `write(temporary)`, syncs, and moves the result to `path` in one step; True if this call's file is there.

    With `replace=False` a file that is already there stays: the first writer wins. `durable=False` is for what can be
    made again from other files should the power fail, `sync_folder=False` for what is soon followed by another file.

    Raises:
        ArtifactError: the disk is full, read-only or not ours; nothing half-written is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if temporary.is_file():
            # Some libraries make private files (0600); a store may be shared by a group, so the umask decides.
            temporary.chmod(0o666 & ~_UMASK)
        if durable:
            sync(temporary)
        won = True
        if replace:
            os.replace(temporary, path)
        else:
            won = _link(temporary, path)
        if durable and sync_folder:
            sync(path.parent)
        return won
    except FileNotFoundError as error:
        if not path.exists():  # else others published it and swept leftovers: the same name holds the same bytes
            raise ArtifactError(f"{path}: the folder vanished while this was written; run again") from error
        return False
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


#: Names of files and links that exist only while something is written; what is left of them is of killed processes.
LEFTOVERS = (".*.tmp", ".probe-" + "?" * 8, ".link-" + "?" * 8, ".files." + "?" * 8, ".claim." + "?" * 8 + ".dead")


def sweep_leftovers(folder: Path, older_than_s: float = 3600.0, *, deep: bool = False) -> int:
    """Removes what killed processes left half-written in a folder (and below it with `deep`); returns how many."""
    removed = 0
    for path in (p for pattern in LEFTOVERS for p in (folder.rglob(pattern) if deep else folder.glob(pattern))):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime < older_than_s:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed += 1
    return removed


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:  # file systems without hard links
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        os.replace(temporary, path)
    return True


def remember(path: Path, value: Any) -> None:
    """Writes JSON that can be made again: a folder that cannot be written only costs time."""
    with contextlib.suppress(ArtifactError):
        write_json(path, value, durable=False)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link `target` to a finished file, or a copy where the disk has no hard links; replaces `target`."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def create_exclusively(path: Path, value: Any) -> bool:
    """Writes JSON to `path` only if nothing is there; True if this call made it.

    The file appears whole (written aside, then hard-linked), which also holds on network disks where O_EXCL does not.
    """
    text = json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n"
    return publish(path, lambda temporary: temporary.write_text(text), replace=False)


def sync(path: Path) -> None:
    """Forces a file or folder to disk; folders that cannot be synced (some network disks) are passed over."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    finally:
        os.close(descriptor)


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def looks_like_html(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page, as servers send instead of a file."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<script", b"<body"))


def installed_file(package: str, *parts: str) -> Path | None:
    """A file inside an installed package, found without importing it; None where either is missing."""
    spec = find_spec(package)
    path = Path(spec.origin).parent.joinpath(*parts) if spec is not None and spec.origin else None
    return path if path is not None and path.is_file() else None
