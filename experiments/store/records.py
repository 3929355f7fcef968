"""Executions of pipelines: their records in `<store>/pipelines`, and configs of steps with all upstream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.store.claims import Owner
from experiments.store.documents import FORMAT, Code, Digests, Request
from experiments.store.typed_json import OPTIONAL, DamagedError, Document, Options, plain
from maskgit_core.errors import unknown_name
from maskgit_core.files import write_json


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """A step of an execution, as planned."""

    name: str
    step: str
    stage: str
    kind: str
    fingerprint: str
    folder: str  # relative to the store
    params: Options = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    action: str = "run"
    reason: str = ""
    experiment: str | None = field(default=None, metadata=OPTIONAL)  # where it was looked up by name
    old_code: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # modules that changed since it was made


@dataclass(frozen=True, kw_only=True)
class PipelineItem:
    """A point of the sweep: its values, and step name -> fingerprint."""

    params: Options
    label: str = ""
    steps: Digests = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PipelineRecord(Document):
    """One execution of a pipeline; `<store>/pipelines/<uid>.json`."""

    REMEDY = "maskgit verify --repair sets it aside, after which its command can be run again"

    format: int = FORMAT
    uid: str
    experiment: str
    description: str = ""
    overrides: tuple[str, ...] = ()
    command: str = ""
    user: str = ""
    owner: Owner | None = None
    host: str = ""
    time: float
    code: Code = field(default_factory=Code)
    settings: Options = field(default_factory=dict)
    items: tuple[PipelineItem, ...] = ()
    steps: tuple[PipelineStep, ...]

    @staticmethod
    def path(store: Path, uid: str) -> Path:
        """The file of an execution."""
        return store / "pipelines" / f"{uid}.json"

    @classmethod
    def of(cls, store: Path, uid: str | None) -> PipelineRecord | None:
        """The record of an execution, or None; raises `DamagedError`."""
        return cls.load(cls.path(store, uid)) if uid else None

    def save(self, store: Path) -> None:
        """Writes it into the store."""
        write_json(self.path(store, self.uid), plain(self))

    @property
    def by_fingerprint(self) -> dict[str, PipelineStep]:
        """Its steps by fingerprint."""
        return {step.fingerprint: step for step in self.steps}

    @property
    def launcher(self) -> str:
        """Name of the launcher; empty where unknown."""
        block = self.settings.get("launcher")
        return str(block.get("name", "")) if isinstance(block, Mapping) else ""


# -- all executions of a store ----------------------------------------------------------------------------------------
def pipelines(store: Path) -> list[Path]:
    """The files of all executions, oldest first."""
    return sorted((store / "pipelines").glob("*.json"))


def records(store: Path) -> list[PipelineRecord]:
    """All executions, newest first; raises `DamagedError`."""
    return [record for path in reversed(pipelines(store)) if (record := PipelineRecord.load(path)) is not None]


def sound_records(store: Path) -> tuple[list[PipelineRecord], list[DamagedError]]:
    """The executions whose records can be read, newest first, and what is wrong with the others."""
    sound, damaged = [], []
    for path in reversed(pipelines(store)):
        try:
            record = PipelineRecord.load(path)
        except DamagedError as error:
            damaged.append(error)
        else:
            sound += [record] if record is not None else []
    return sound, damaged


def latest_records(store: Path, experiment: str | None = None, warn: Callable[[str], object] | None = None
                   ) -> list[PipelineRecord]:  # fmt: skip
    """The newest execution of every experiment (or of the one with this name or uid), newest first.

    Args:
        warn: is told of damaged records, which are then passed over; without it they are an error.

    Raises:
        ConfigError: there is no such experiment. DamagedError: see `warn`.
    """
    newest: dict[str, PipelineRecord] = {}
    names = set()
    known, damaged = sound_records(store)
    for error in damaged:
        if warn is None:
            raise error
        warn(str(error))
    for record in known:
        names.add(record.experiment)
        if record.experiment not in newest and experiment in (None, record.experiment, record.uid):
            newest[record.experiment] = record
    if experiment is not None and not newest:
        raise unknown_name("experiment", experiment, names, f"run in {store} of experiment")
    return list(newest.values())


def new_uid() -> str:
    """A sortable id of one execution: its time to the microsecond (five hex digits of it) and a random tail."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + f"{int(now % 1 * 16**5):05x}" + uuid.uuid4().hex[:3]


def mark_cancelled(store: Path, uids: Sequence[str]) -> None:
    """Notes that these executions were cancelled as a whole: they count on nothing any more."""
    for uid in uids:
        write_json(store / "pipelines" / "cancelled" / f"{uid}.json", {"uid": uid}, durable=False)


def is_cancelled(store: Path, uid: str) -> bool:
    """True where `mark_cancelled` was told of this execution."""
    return (store / "pipelines" / "cancelled" / f"{uid}.json").exists()


# -- configs ----------------------------------------------------------------------------------------------------------
def step_params(entry: PipelineStep, request: Request | None) -> dict[str, str]:
    """Own config (`train.lr`, `sampler.guidance_scale`) and the sweep's values from upstream, as text.

    A kept checkpoint (`train@500`) has the config of its training, under that one's name.
    """
    flat: dict[str, str] = {}
    step = entry.step.partition("@")[0]
    for key, value in (request.config if request else {}).items():
        if isinstance(value, Mapping):
            _flatten(str(key), value, flat)
        else:
            flat[f"{step}.{key}"] = _text(value)
    for key, value in entry.params.items():
        _flatten(str(key), value, flat)
    return flat


StepParams = Callable[[PipelineStep, Request | None], dict[str, str]]


def effective_config(
    store: Path, record: PipelineRecord, entry: PipelineStep, read: StepParams = step_params
) -> tuple[dict[str, str], list[Path]]:
    """Config of a step and of everything it was made from, and the folders of the latter, nearest first.

    A step's own value wins over one from further up. `read` gives the values of one step as text.
    """
    steps = record.by_fingerprint
    config: dict[str, str] = {}
    upstream, queue, seen = [], [entry.fingerprint], set()
    while queue:
        step = steps.get(queue.pop(0))
        if step is None or step.fingerprint in seen:
            continue
        seen.add(step.fingerprint)
        if step is not entry:
            upstream.append(store / step.folder)
        config = {**read(step, Request.read(store / step.folder)), **config}
        queue += step.needs
    return config, upstream


def _flatten(prefix: str, value: object, into: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}", inner, into)
    else:
        into[prefix] = _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
