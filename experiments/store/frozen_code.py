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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from experiments.store import provenance
from experiments.store.documents import Code
from experiments.store.typed_json import fingerprint
from maskgit_core.files import explain

_LEFT_OUT = ("tests/", "docs/", ".github/", ".ci/")
_PACKAGES = ("maskgit_core", "experiments", "launchers", "conf")
_UNTRACKED_LIMIT = 1_000_000  # bytes; larger untracked files are no source code


@dataclass(frozen=True)
class Frozen:
    """The files of a copy of the code, and what its `FROZEN.json` says.

    Args:
        files: place in the copy -> file.
        state: with the digest that names the copy.
    """

    files: Mapping[str, Path]
    state: Code

    @property
    def digest(self) -> str:
        """The name of the copy's folder."""
        return str(self.state.digest)


def frozen(plugins: Sequence[str] = (), root: Path = provenance.ROOT) -> Frozen:
    """The code as it is now; what looks like a secret is left out and named."""
    return _frozen({**dict(_project_files(root)), **dict(_plugin_files(plugins))})


def frozen_request(plugins: Sequence[str], more: Mapping[str, Path]) -> Frozen:
    """A copy of all that a request needs besides the code: plugins, and further files by their place in the copy."""
    return _frozen({**dict(_plugin_files(plugins)), **more})


def _frozen(files: Mapping[str, Path]) -> Frozen:
    secret = sorted(name for name in files if looks_secret(name))
    if secret:
        print(f"not frozen, since they look like secrets: {', '.join(secret)}", file=sys.stderr)
    files = {name: path for name, path in sorted(files.items()) if name not in secret}
    contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    state = provenance.code_state()
    digest = fingerprint({"files": contents, "commit": state.commit})[:16]
    return Frozen(files, replace(state, digest=digest, time=time.time(), files=len(files)))


def freeze(store: Path, plugins: Sequence[str] = (), root: Path = provenance.ROOT) -> Path:
    """The folder with the frozen code; an equal one that is already there is used again, as is this code itself where
    it is such a copy.

    Raises:
        ArtifactError: the store cannot be written.
    """
    if _is_copy(root, store) and all((root / plugin.partition(".")[0]).is_dir() for plugin in plugins):
        return root
    code = frozen(plugins, root)
    target = store / "code" / code.digest
    if (target / Code.FILE).is_file():
        return target
    temporary = target.with_name(f".{code.digest}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name, path in code.files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        code.state.write(temporary)
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


def _is_copy(root: Path, store: Path) -> bool:
    """True where the code that runs is a copy in this very store."""
    place = store / "code"
    return (root / Code.FILE).is_file() and place.is_dir() and root.parent.samefile(place)


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
