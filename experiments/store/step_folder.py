"""The store: step folders, their manifests and what state they are in. Files are the truth."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.store.claims import Claim, JobAlive, Owner
from maskgit_core.errors import ArtifactError
from maskgit_core.files import create_exclusively, explain, read_json, write_for_group

State = Literal["absent", "done", "running", "failed", "stopped", "killed", "cancelled", "waiting"]


def canonical(value: Any) -> bytes:
    """The one JSON text of plain data: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """All step folders below one root: `<root>/<stage>/<label>-<fingerprint[:8]>/`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        write_for_group(self.root)
        self._listed: dict[str, dict[str, list[Path]]] = {}

    def folder(self, stage: str, label: str, fingerprint: str) -> Path:
        """Where the step with this fingerprint lies (found by fingerprint, whatever its label) or will lie."""
        for path in self._listing(stage).get(fingerprint[:8], []):
            request = read_json(path / "request.json")
            if request is None or request.get("fingerprint") == fingerprint:
                return path
        length = 8
        while (path := self.root / stage / f"{label}-{fingerprint[:length]}").exists():
            request = read_json(path / "request.json")
            if request is None or request.get("fingerprint") == fingerprint:
                break
            length += 8
        return path

    def _listing(self, stage: str) -> dict[str, list[Path]]:
        if stage not in self._listed:
            found: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError):
                for entry in os.scandir(self.root / stage):
                    tail = re.search(r"-([0-9a-f]{8,64})$", entry.name)
                    if tail:
                        found.setdefault(tail[1][:8], []).append(Path(entry.path))
            self._listed[stage] = found
        return self._listed[stage]

    def refresh(self) -> None:
        """Forgets what was listed; folders may have come since."""
        self._listed.clear()

    def steps(self, stage: str | None = None) -> list[Path]:
        """Every step folder, or those of one stage."""
        stages = [self.root / stage] if stage else [p for p in sorted(self.root.glob("*")) if p.is_dir()]
        return [p.parent for s in stages for p in sorted(s.glob("*/request.json"))]

    def check_writable(self) -> None:
        """Raises `ArtifactError` with the remedy where nothing can be written here."""
        probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 4096)
        except OSError as error:
            raise explain(error, self.root) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


@dataclass(frozen=True)
class Status:
    """What is known of a step from its files."""

    state: State
    attempt: int = 0
    owner: Owner | None = None
    end: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None


def attempts(folder: Path) -> list[Path]:
    """The attempts' folders, oldest first."""
    with contextlib.suppress(OSError):
        return sorted(p for p in (folder / "attempts").iterdir() if p.name.isdigit())
    return []


def status(folder: Path, job_alive: JobAlive | None = None) -> Status:
    """Reads a step's state from its files; a process that died without a word is `killed`."""
    if not folder.exists():
        return Status("absent")
    manifest = read_json(folder / "manifest.json")
    tried = attempts(folder)
    last = tried[-1] if tried else None
    number = int(last.name) if last else 0
    start = (read_json(last / "start.json") if last else None) or {}
    end = (read_json(last / "end.json") if last else None) or {}
    if manifest is not None:
        return Status("done", int(manifest.get("attempt", number)), None, end, start, manifest)
    owner = Claim(folder, job_alive).live_owner()
    if owner is not None:
        return Status("running", number, owner, {}, start)
    if (folder / "cancelled").exists():
        return Status("cancelled", number, None, end, start)
    if end and end.get("state") != "done":
        return Status(end.get("state", "failed"), number, None, end, start)
    if last is not None:
        dead = Claim(folder, job_alive).owner()
        # an attempt says that it is done just before it is published; between the two it may be killed
        reason = "ended before it was published" if end else "ended without a word"
        return Status("killed", number, dead, {"state": "killed", "reason": reason}, start)
    return Status("waiting" if (folder / "request.json").exists() else "absent", 0)


def last_end(folder: Path) -> dict[str, Any]:
    """How the newest attempt ended, as it said itself; empty where it could not say."""
    tried = attempts(folder)
    return (read_json(tried[-1] / "end.json") if tried else None) or {}


def new_attempt(folder: Path) -> int:
    """Makes the next attempt's folder exclusively; its number is the fencing token."""
    while True:
        number = max((int(p.name) for p in attempts(folder)), default=0) + 1
        try:
            (folder / "attempts" / f"{number:04d}").mkdir(parents=True)
            return number
        except FileExistsError:
            continue
        except OSError as error:
            raise explain(error, folder) from error


def list_outputs(files: Path) -> dict[str, dict[str, Any]]:
    """Every file below `files` with size, sha256 and mtime."""
    listed = {}
    for path in sorted(p for p in files.rglob("*") if p.is_file()):
        info = path.stat()
        listed[path.relative_to(files).as_posix()] = {
            "size": info.st_size,
            "sha256": sha256_file(path),
            "mtime_ns": info.st_mtime_ns,
        }
    return listed


def manifest_digest(outputs: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """What an artifact *is*: names, sizes and sha256 of its outputs, and its facts; not when or where."""
    listed = {name: [o["size"], o["sha256"]] for name, o in outputs.items()}
    return fingerprint({"outputs": listed, "facts": dict(facts)})


def finish(folder: Path, attempt: int, manifest: Mapping[str, Any]) -> bool:
    """Marks a step done: links `files` to the attempt's and publishes the manifest exclusively, last of all.

    Returns False where another attempt finished first (its manifest stands).
    """
    if not create_exclusively(folder / "manifest.json", dict(manifest)):
        return False
    link_files(folder, attempt)
    return True


def link_files(folder: Path, attempt: int) -> None:
    """Points `files` at the outputs of the finished attempt."""
    temporary = folder / f".files.{uuid.uuid4().hex[:8]}"
    os.symlink(Path("attempts", f"{attempt:04d}", "files"), temporary)
    os.replace(temporary, folder / "files")


def check_outputs(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares a finished step's files with its manifest; hashes only what was touched since.

    Raises:
        ArtifactError: a file is missing or differs; names it and the remedy.
    """
    remedy = "run again with --redo and this step's name, or restore the file"
    files = folder / "attempts" / f"{int(manifest['attempt']):04d}" / "files"
    if not (folder / "files").exists() and files.is_dir():
        link_files(folder, int(manifest["attempt"]))  # killed between the mark and the link
    for name, known in manifest["outputs"].items():
        path = files / name
        try:
            info = path.stat()
        except OSError:
            raise ArtifactError(f"{path}: is missing, but the step's manifest lists it; {remedy}") from None
        if info.st_size != known["size"]:
            raise ArtifactError(
                f"{path}: has {info.st_size} bytes, its manifest says {known['size']}; it was changed after the step "
                f"finished; {remedy}"
            )
        if info.st_mtime_ns != known["mtime_ns"] and sha256_file(path) != known["sha256"]:
            raise ArtifactError(f"{path}: does not match the sha256 in its manifest; it was changed; {remedy}")


def is_current(folder: Path, inputs: Mapping[str, str]) -> bool:
    """True where the step is done and was made from its inputs as they are now (fingerprint -> manifest digest)."""
    manifest = read_json(folder / "manifest.json")
    return manifest is not None and manifest.get("inputs", {}) == dict(inputs)


def retire(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Takes a finished step's mark away but keeps its result: the mark and shared pieces go to its attempt's folder."""
    own = folder / "attempts" / f"{int(manifest['attempt']):04d}"
    own.mkdir(parents=True, exist_ok=True)
    # The mark goes first: killed in between, the step is simply not done.
    (folder / "manifest.json").rename(own / "manifest.json")
    for number in attempts(folder):
        shutil.rmtree(number / "checkpoints", ignore_errors=True)
    if (folder / "parts").is_dir():
        target = own / "parts"
        shutil.rmtree(target, ignore_errors=True)
        (folder / "parts").rename(target)
    (folder / "files").unlink(missing_ok=True)


def verify(folder: Path) -> None:
    """Raises `ArtifactError` where a finished step's files do not match its manifest."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None:
        raise ArtifactError(f"{folder}: is not finished")
    check_outputs(folder, manifest)
