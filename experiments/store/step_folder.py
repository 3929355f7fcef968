"""The store: step folders and what state they are in. Files are the truth."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.store.claims import Claim, JobAlive, Owner
from experiments.store.documents import End, Manifest, Request, Start
from experiments.store.paths import StepFolder
from experiments.store.typed_json import DamagedError
from maskgit_core.errors import ArtifactError
from maskgit_core.files import explain, sha256_of, write_for_group

State = Literal["absent", "done", "running", "failed", "stopped", "killed", "cancelled", "waiting"]


class Store:
    """All step folders below one root: `<root>/<stage>/<label>-<fingerprint[:8]>/`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        write_for_group(self.root)
        self._listed: dict[str, dict[str, list[Path]]] = {}

    def folder(self, stage: str, label: str, fingerprint: str) -> Path:
        """The folder of the step with this fingerprint, whatever its label; where there is none, the one it gets."""
        for path in self._listing(stage).get(fingerprint[:8], []):
            if _may_be(path, fingerprint):
                return path
        length = 8
        while (path := self.root / stage / f"{label}-{fingerprint[:length]}").exists():
            if _may_be(path, fingerprint):
                break
            length += 8
        return path

    def _listing(self, stage: str) -> dict[str, list[Path]]:
        if stage not in self._listed:
            folders: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError):
                for entry in os.scandir(self.root / stage):
                    tail = re.search(r"-([0-9a-f]{8,64})$", entry.name)
                    if tail:
                        folders.setdefault(tail[1][:8], []).append(Path(entry.path))
            self._listed[stage] = folders
        return self._listed[stage]

    def refresh(self) -> None:
        """Forgets what was listed; folders may have come since."""
        self._listed.clear()

    def steps(self, stage: str | None = None) -> list[Path]:
        """Every step folder, or those of one stage."""
        stages = [self.root / stage] if stage else [p for p in sorted(self.root.glob("*")) if p.is_dir()]
        return [p.parent for s in stages for p in sorted(s.glob(f"*/{Request.FILE}"))]

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


def _may_be(path: Path, fingerprint: str) -> bool:
    try:
        request = Request.read(path)
    except DamagedError:
        return True  # by its name; whoever uses the step reports the damage
    if request is None or request.fingerprint == fingerprint:
        return True
    return path.name.rpartition("-")[2][:8] != request.fingerprint[:8]  # damaged, too: not the one it is named after


@dataclass(frozen=True)
class Status:
    """State of a step, as its files tell it."""

    state: State
    attempt: int = 0
    owner: Owner | None = None
    end: End | None = None
    start: Start | None = None
    manifest: Manifest | None = None

    @property
    def reason(self) -> str:
        """Why the newest attempt ended; empty where nothing is known."""
        return self.end.reason if self.end is not None else ""


def status(folder: Path, job_alive: JobAlive | None = None, *, brief: bool = False) -> Status:
    """Reads a step's state from its files; a process that died without a word is `killed`.

    Args:
        brief: of a finished step only the manifest is read.

    Raises:
        DamagedError: a document is damaged.
    """
    manifest = Manifest.read(folder)
    if manifest is not None and brief:
        return Status("done", manifest.attempt, manifest=manifest)
    if manifest is None and not folder.exists():
        return Status("absent")
    step = StepFolder(folder)
    tried = step.attempts()
    last = tried[-1] if tried else None
    number = last.number if last else 0
    start, end = (Start.read(last.path), End.read(last.path)) if last else (None, None)
    if manifest is not None:
        return Status("done", manifest.attempt, None, end, start, manifest)
    owner = Claim(folder, job_alive).live_owner()
    if owner is not None:
        return Status("running", number, owner, None, start)
    if step.cancelled.exists():
        return Status("cancelled", number, None, end, start)
    if end is not None and end.state != "done":
        return Status(end.state, number, None, end, start)
    if last is not None:
        dead = Claim(folder, job_alive).owner()
        # an attempt says that it is done just before it is published; between the two it may be killed
        reason = "ended before it was published" if end else "ended without a word"
        return Status("killed", number, dead, End(state="killed", reason=reason), start)
    return Status("waiting" if step.request.exists() else "absent", 0)


def last_end(folder: Path) -> End | None:
    """How the newest attempt ended, in its own words; None where it could not say."""
    tried = StepFolder(folder).attempts()
    return End.read(tried[-1].path) if tried else None


def new_attempt(folder: Path) -> int:
    """Makes the next attempt's folder exclusively; its number is the fencing token."""
    step = StepFolder(folder)
    while True:
        number = max((attempt.number for attempt in step.attempts()), default=0) + 1
        try:
            step.attempt(number).path.mkdir(parents=True)
            return number
        except FileExistsError:
            continue
        except OSError as error:
            raise explain(error, folder) from error


def finish(folder: Path, manifest: Manifest) -> bool:
    """Marks a step done: publishes the manifest exclusively, then links `files` to the attempt's.

    Returns False where another attempt finished first (its manifest stays).
    """
    if not manifest.create(folder):
        return False
    link_files(folder, manifest.attempt)
    return True


def link_files(folder: Path, attempt: int) -> None:
    """Points `files` at the outputs of the finished attempt."""
    step = StepFolder(folder)
    temporary = folder / f".files.{uuid.uuid4().hex[:8]}"
    os.symlink(step.attempt(attempt).files.relative_to(folder), temporary)
    os.replace(temporary, step.files)


def check_outputs(folder: Path, manifest: Manifest) -> None:
    """Compares a finished step's files with its manifest; hashes only those touched since.

    Raises:
        ArtifactError: a file is missing or differs; names it and the remedy.
    """
    remedy = "run again with --redo and this step's name, or restore the file"
    step = StepFolder(folder)
    files = step.attempt(manifest.attempt).files
    linked = step.files.is_dir() and (not step.files.is_symlink() or _same(step.files, files))
    if not linked and files.is_dir():
        try:
            link_files(folder, manifest.attempt)  # killed between the mark and the link, or somebody changed it
        except OSError as error:
            raise explain(error, step.files) from error
    for name, known in manifest.outputs.items():
        path = files / name
        try:
            info = path.stat()
        except OSError:
            raise ArtifactError(f"{path}: is missing, but the step's manifest lists it; {remedy}") from None
        if info.st_size != known.size:
            raise ArtifactError(
                f"{path}: has {info.st_size} bytes, its manifest says {known.size}; it was changed after the step "
                f"finished; {remedy}"
            )
        if info.st_mtime_ns != known.mtime_ns and sha256_of(path) != known.sha256:
            raise ArtifactError(f"{path}: does not match the sha256 in its manifest; it was changed; {remedy}")


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def is_current(folder: Path, inputs: Mapping[str, str]) -> bool:
    """True where the step is done and was made from its inputs as they are now (fingerprint -> manifest digest)."""
    manifest = Manifest.read(folder)
    return manifest is not None and manifest.inputs == dict(inputs)


def retire(folder: Path, manifest: Manifest) -> None:
    """Takes a finished step's mark away but keeps its result: the mark and shared pieces go to its attempt's folder."""
    step = StepFolder(folder)
    own = step.attempt(manifest.attempt).path
    own.mkdir(parents=True, exist_ok=True)
    # The mark goes first: killed in between, the step is simply not done.
    step.manifest.rename(own / Manifest.FILE)
    for attempt in step.attempts():
        shutil.rmtree(attempt.checkpoints, ignore_errors=True)
    if step.parts.is_dir():
        target = own / "parts"
        shutil.rmtree(target, ignore_errors=True)
        step.parts.rename(target)
    step.files.unlink(missing_ok=True)


def reinstate(folder: Path) -> bool:
    """Makes a result that `retire` set aside the step's again, where no attempt was begun since; whether it did."""
    step = StepFolder(folder)
    attempts = list(step.attempts())
    if not attempts or not attempts[-1].set_aside or step.manifest.exists():
        return False
    own = attempts[-1].path
    if (own / "parts").is_dir() and not step.parts.exists():
        (own / "parts").rename(step.parts)
    link_files(folder, attempts[-1].number)
    (own / Manifest.FILE).rename(step.manifest)  # the mark comes last: killed in between, the step is simply not done
    return True
