"""A copy of the code as it is now, for jobs that start later: `<store>/code/<digest>/`, made once for each content.

Holds tracked files with their working changes, untracked `*.py` and `*.yaml` that git does not ignore, and plugin
packages. `FROZEN.json` in it names the commit and the difference it was made from; records quote it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from experiments.store import provenance
from experiments.store.documents import Code
from experiments.store.typed_json import fingerprint
from maskgit_core.files import explain

_LEFT_OUT = ("tests/", "docs/", ".github/", ".ci/")
_PACKAGES = ("maskgit_core", "experiments", "launchers", "conf")
_UNTRACKED_LIMIT = 1_000_000  # bytes; larger untracked files are no source code


def freeze(store: Path, plugins: Sequence[str] = (), root: Path = provenance.ROOT) -> Path:
    """The folder with the frozen code; an equal one that is already there is used again.

    Raises:
        ArtifactError: the store cannot be written.
    """
    files = {**dict(_project_files(root)), **dict(_plugin_files(plugins))}
    secret = sorted(name for name in files if looks_secret(name))
    if secret:
        print(f"not frozen, since they look like secrets: {', '.join(secret)}", file=sys.stderr)
    files = {name: path for name, path in files.items() if name not in secret}
    contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
    state = provenance.code_state()
    digest = fingerprint({"files": contents, "commit": state.commit})[:16]
    target = store / "code" / digest
    if (target / Code.FILE).is_file():
        return target
    temporary = target.with_name(f".{digest}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name, path in files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        replace(state, digest=digest, time=time.time(), files=len(files)).write(temporary)
        try:
            os.rename(temporary, target)
        except OSError:
            if not (target / Code.FILE).is_file():  # someone else made the same copy first
                raise
    except OSError as error:
        raise explain(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def looks_secret(name: str) -> bool:
    """True for files that by their name hold passwords or keys."""
    return any(fnmatch(Path(name).name.lower(), pattern) for pattern in provenance.SECRETS)


def _project_files(root: Path) -> Iterator[tuple[str, Path]]:
    tracked = _git_files(root, "--cached")
    if tracked is None:  # installed without git: the packages themselves
        for package in _PACKAGES:
            for path in sorted((root / package).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield path.relative_to(root).as_posix(), path
        return
    untracked = _git_files(root, "--others", "--exclude-standard", "--", "*.py", "*.yaml") or []
    for names, limit in ((tracked, None), (untracked, _UNTRACKED_LIMIT)):
        for name in names:
            path = root / name
            if name.startswith(_LEFT_OUT) or not path.is_file() or path.is_symlink():
                continue
            if limit is None or path.stat().st_size <= limit:
                yield name, path


def _git_files(root: Path, *options: str) -> list[str] | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", *options], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [name for name in done.stdout.split("\0") if name] or None


def _plugin_files(plugins: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for plugin in plugins:
        top = plugin.partition(".")[0]
        spec = importlib.util.find_spec(top)
        for place in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(place).rglob("*")):
                if path.suffix in (".py", ".yaml") and path.is_file() and path.stat().st_size <= _UNTRACKED_LIMIT:
                    yield f"{top}/{path.relative_to(place).as_posix()}", path
