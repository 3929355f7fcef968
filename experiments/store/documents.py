"""The documents of a store: their fields and their names on disk.

No other file knows these names. A document is absent (None), whole, or damaged; a damaged one is an error that names
the file and the remedy, and is never taken for an absent one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from experiments.store.claims import Owner
from experiments.store.typed_json import OPTIONAL, DamagedError, Document, MalformedError, Options, fingerprint
from maskgit_core.files import sha256_of

FORMAT = 1
Digests = Mapping[str, str]


# -- parts of documents -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Source:
    """An upstream step: its fingerprint and its folder, relative to the store."""

    fingerprint: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class InputName:
    """How the newest execution names an upstream step."""

    name: str
    params: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file that a step made."""

    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The one number a step is known by."""

    name: str
    value: float
    protocol: Options | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetUse:
    """A dataset that a step read, and for what (`training`, `evaluation`, `reference`, ...)."""

    name: str
    digest: str
    path: str
    context: str


@dataclass(frozen=True, kw_only=True)
class Code(Document):
    """State of the code: commit, and the difference of the working tree from it."""

    FILE = "FROZEN.json"  # in a frozen copy of the code

    commit: str | None = None
    dirty: bool = False
    diff: str = field(default="", metadata=OPTIONAL)
    diff_sha256: str | None = None
    source_sha256: str | None = field(default=None, metadata=OPTIONAL)  # where no repository tracks the code
    digest: str | None = field(default=None, metadata=OPTIONAL)  # of a frozen copy, as are these:
    time: float | None = field(default=None, metadata=OPTIONAL)
    files: int | None = field(default=None, metadata=OPTIONAL)

    def brief(self) -> Code:
        """The same without the difference's text."""
        return replace(self, diff="")


# -- a step's documents -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Request(Document):
    """The request of a step; written once."""

    FILE = "request.json"

    format: int = FORMAT
    fingerprint: str
    stage: str
    module: str
    version: int
    kind: str
    config: Options
    identity: Options = field(default_factory=dict)  # config without options at their neutral values
    modules: Digests = field(default_factory=dict)
    outside: Digests = field(default_factory=dict)  # dotted key -> digest of content
    inputs: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)

    @property
    def sources(self) -> list[Source]:
        """All upstream steps."""
        return [source for sources in self.inputs.values() for source in sources]


@dataclass(frozen=True, kw_only=True)
class Launch(Document):
    """How the newest execution runs a step: names, the sweep's values, and what never enters a fingerprint."""

    FILE = "launch.json"

    name: str
    step: str
    params: Options = field(default_factory=dict)
    experiment: str
    pipeline: str
    execution: Options = field(default_factory=dict)
    content: Options = field(default_factory=dict)
    weights: Options = field(default_factory=dict)
    resources: Options = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    inputs: Mapping[str, InputName] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Notes(Document):
    """Facts, headline and datasets that a stage stated while it ran."""

    FILE = "notes.json"

    facts: Options = field(default_factory=dict)
    headline: Headline | None = None
    datasets: tuple[DatasetUse, ...] = ()
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest(Document):
    """The done mark, written last: what a finished step made, and from what."""

    FILE = "manifest.json"

    format: int = FORMAT
    fingerprint: str
    kind: str
    attempt: int
    outputs: Mapping[str, Output]
    facts: Options
    inputs: Digests  # upstream fingerprint -> digest of its manifest
    digest: str
    time: float
    seconds: float = 0.0
    headline: Headline | None = None
    shown: tuple[str, ...] = ()
    datasets: tuple[DatasetUse, ...] = ()
    adopted_from: str | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The manifest in a step's folder, or None; one of another step is damage, too."""
        manifest = super().read(folder)
        named = re.search(r"-([0-9a-f]{8,64})$", folder.name)
        if manifest is not None and named is not None and not manifest.fingerprint.startswith(named[1]):
            raise DamagedError(folder / cls.FILE, "belongs to another step", cls.REMEDY)
        return manifest

    @classmethod
    def of_files(
        cls,
        request: Request,
        attempt: int,
        files: Path,
        notes: Notes,
        inputs: Digests,
        *,
        started: float | None = None,
        adopted_from: str | None = None,
    ) -> Manifest:
        """The manifest of what is in `files`, which an attempt made that `started` then; hashes every file."""
        now = time.time()
        outputs = list_outputs(files)
        return cls(
            fingerprint=request.fingerprint,
            kind=request.kind,
            attempt=attempt,
            outputs=outputs,
            facts=notes.facts,
            inputs=dict(inputs),
            digest=manifest_digest(outputs, notes.facts),
            time=now,
            seconds=now - started if started is not None else 0.0,
            headline=notes.headline,
            shown=notes.shown,
            datasets=notes.datasets,
            adopted_from=adopted_from,
        )

    @property
    def notes(self) -> Notes:
        """The notes of its stage."""
        return Notes(facts=self.facts, headline=self.headline, datasets=self.datasets, shown=self.shown)

    def check(self) -> None:
        """Names of outputs stay inside the step's folder, and the digest is that of outputs and facts."""
        for name in self.outputs:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise MalformedError(f"outputs.{name} is no path inside the step's folder")
        if self.attempt < 1:
            raise MalformedError(f"attempt is {self.attempt}, not 1 or more")
        if self.digest != manifest_digest(self.outputs, self.facts):
            raise MalformedError("digest does not belong to its outputs and facts")


def list_outputs(files: Path) -> dict[str, Output]:
    """Every file below `files`, by its relative path."""
    listed = {}
    for path in sorted(p for p in files.rglob("*") if p.is_file()):
        info = path.stat()
        listed[path.relative_to(files).as_posix()] = Output(
            size=info.st_size, sha256=sha256_of(path), mtime_ns=info.st_mtime_ns
        )
    return listed


def manifest_digest(outputs: Mapping[str, Output], facts: Options) -> str:
    """Identity of an artifact: names, sizes and sha256 of its outputs, and its facts; not when or where."""
    listed = {name: [output.size, output.sha256] for name, output in outputs.items()}
    return fingerprint({"outputs": listed, "facts": dict(facts)})


@dataclass(frozen=True, kw_only=True)
class Start(Document):
    """When, where and with which code an attempt began."""

    FILE = "start.json"

    time: float
    attempt: int = 0
    owner: Owner | None = None
    world_size: int = 1
    resources: Options | None = None
    pipeline: str | None = None
    launch: str | None = None
    code: Code = field(default_factory=Code)


@dataclass(frozen=True, kw_only=True)
class End(Document):
    """How an attempt ended, in its own words."""

    FILE = "end.json"

    state: Literal["done", "failed", "stopped", "killed"]
    reason: str = ""
    time: float | None = None
    code: int | None = None
    traceback: str | None = None
    peak_memory_gb: float | None = field(default=None, metadata=OPTIONAL)  # resident, 10^9 bytes, of rank 0


@dataclass(frozen=True, kw_only=True)
class JournalSum:
    """How long a journal was when its step was finished, and the sha256 of so many bytes."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt in a record."""

    number: int
    start: Start | None = None
    end: End | None = None
    journal: JournalSum | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Record(Document):
    """The provenance of a step's numbers: code, packages, machine, attempts."""

    FILE = "record.json"

    request: Request
    launch: Launch
    code: Code = field(default_factory=Code)
    science_files: Options = field(default_factory=dict)
    packages: Digests = field(default_factory=dict)
    machine: Options = field(default_factory=dict)
    started: float
    ended: float
    attempts: tuple[AttemptRecord, ...] = ()
    notes: Notes = field(default_factory=Notes)
    digest: str | None = field(default=None, metadata=OPTIONAL)  # of the manifest published with it


@dataclass(frozen=True, kw_only=True)
class Submission(Document):
    """The SLURM jobs that run a step."""

    FILE = "submitted.json"

    links: tuple[str, ...]  # the job, or the chain of jobs
    pipeline: str
    packed: bool = False
    user: str = ""
    tasks: tuple[str, ...] = ()  # array tasks that make its pieces before
    cluster: str = field(default="", metadata=OPTIONAL)  # SLURM's ClusterName


@dataclass(frozen=True, kw_only=True)
class Refusal(Document):
    """Why a step could not begin."""

    FILE = "refused.json"

    reason: str
    time: float = 0.0
