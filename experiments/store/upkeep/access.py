"""Who of a group would be locked out of a shared store: umask, group, modes and set-group-ID bits."""

from __future__ import annotations

import grp
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from experiments.store.claims import user_name
from maskgit_core.errors import MaskgitError
from maskgit_core.files import read_umask

#: More entries than this are not looked at one by one.
MOST = 200_000


def group_name(gid: int) -> str:
    """The name of a group, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


@dataclass
class Access:
    """The findings below a store.

    Args:
        root: the store.
        entries: files and folders looked at.
        owners: how many of them belong to whom (uid).
        problems: what locks the group out -> the paths.
    """

    root: Path
    entries: int = 0
    owners: Counter[int] = field(default_factory=Counter)
    problems: dict[str, list[Path]] = field(default_factory=dict)

    def note(self, problem: str, path: Path) -> None:
        """One more path that has a problem."""
        self.problems.setdefault(problem, []).append(path)


def look(root: Path) -> Access:
    """Looks at the modes of everything in a store."""
    listing = Access(root)
    group = root.stat().st_gid
    for path in _entries(root):
        listing.entries += 1
        try:
            info = path.lstat()
        except OSError:
            continue
        listing.owners[info.st_uid] += 1
        if stat.S_ISLNK(info.st_mode):
            continue
        if info.st_gid != group:
            listing.note("of another group", path)
        wanted = stat.S_IRWXG if stat.S_ISDIR(info.st_mode) else stat.S_IRGRP | stat.S_IWGRP
        if info.st_mode & wanted != wanted:
            listing.note("without group read and write", path)
        if stat.S_ISDIR(info.st_mode) and not info.st_mode & stat.S_ISGID:
            listing.note("without set-group-ID, so what is made there gets its maker's group", path)
    return listing


def _entries(root: Path) -> Iterator[Path]:
    yield root
    count = 0
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            count += 1
            if count > MOST:
                return
            yield Path(place, name)


def access(root: Path) -> str:
    """A line about who may use a store.

    Raises:
        MaskgitError: it is shared (group-writable, or holds work of several users) and some would be locked out; says
            who, out of what, and the command that mends it.
    """
    if not root.is_dir():
        return f"umask {read_umask():04o}; a group shares a store whose folder is group-writable (chmod 2775)"
    info, listing = root.stat(), look(root)
    group = group_name(info.st_gid)
    several = [user_name(uid) for uid, _ in listing.owners.most_common() if uid != info.st_uid]
    if not info.st_mode & stat.S_IWGRP:
        if several:
            told = f"holds work of {', '.join(several[:5])} too, but only {user_name(info.st_uid)} may write here"
            raise MaskgitError(f"{root}: {told}; {_remedy(root, group)}")
        alone = f"for {user_name(info.st_uid)} alone (mode {stat.S_IMODE(info.st_mode):04o}, umask {read_umask():04o})"
        return f"{alone}; to share it with a group: chgrp GROUP {root} && chmod 2775 {root}"
    if listing.problems:
        told = "; ".join(f"{len(paths)} {problem} ({paths[0]})" for problem, paths in listing.problems.items())
        who = f"group {group}{_members(info.st_gid)}"
        raise MaskgitError(f"{root}: {who} is locked out: {told}; {_remedy(root, group)}")
    return f"shared with group {group}{_members(info.st_gid)}: all {listing.entries} files and folders are open to it"


def _members(gid: int) -> str:
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        return ""
    return f" ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})" if names else ""


def _remedy(root: Path, group: str) -> str:
    return (
        f"chgrp -R {group} {root} && chmod -R g+rwX {root} && find {root} -type d -exec chmod g+s {{}} + "
        "(each owner for what is theirs)"
    )
