"""The one rule for what a typed name means: experiments, runs, steps, rows of status, fingerprints, folders.

Exact names come first: an experiment or the uid of a run as a whole; `STEP`, `EXPERIMENT/STEP`, `UID/STEP` (also with
the item of a sweep, `STEP[lr=0.1]`); `EXPERIMENT/N` for the N-th row of `maskgit status`; a step's folder or its name.
Only then the beginning of a fingerprint, from 6 hex digits on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from experiments.store.documents import Launch, Request
from experiments.store.records import PipelineRecord, PipelineStep, records
from experiments.store.step_folder import Store
from maskgit_core.errors import ConfigError, unknown_name

_T = TypeVar("_T")
_LISTED = 30


def default_store() -> Path:
    """The store that commands without an experiment look at: MASKGIT_STORE, else `runs`."""
    return Path(os.environ.get("MASKGIT_STORE", "runs")).expanduser().absolute()


@dataclass(frozen=True)
class Selection:
    """Steps that a text names.

    Args:
        text: as typed.
        steps: each fingerprint once; `store / step.folder` is the folder of each.
        uids: the executions meant.
        is_whole: these executions are meant as a whole; `steps` ends with those of the newest, in its order.
    """

    text: str
    steps: tuple[PipelineStep, ...]
    uids: tuple[str, ...]
    is_whole: bool = False

    @property
    def one(self) -> PipelineStep:
        """The only step; raises `ConfigError` with the list where there are several."""
        if len(self.steps) > 1 or self.is_whole:
            way = f"name one step of it, as {self.text}/STEP" if self.is_whole else "it names several; name one"
            raise ConfigError(f"{self.text}: {way}: {_listed(step.name for step in self.steps)}")
        return self.steps[0]


def select(text: str, store: Path) -> Selection:
    """The steps that `text` means, of the newest execution that has them.

    Raises:
        ConfigError: empty; nothing matches; or different steps of several experiments, or several fingerprints, do.
    """
    is_folder = bool(text) and (Path(text).expanduser() / Request.FILE).is_file()
    if not is_folder and not all(part.strip() for part in text.split("/")):
        raise ConfigError(f"{text!r}: a name is missing; write an experiment, a run's uid, a step or EXPERIMENT/STEP")
    known = records(store)
    whole = [record for record in known if text in (record.experiment, record.uid)]
    if whole:
        steps: dict[str, PipelineStep] = {}
        for step in (step for record in reversed(whole) for step in record.steps):
            steps.pop(step.fingerprint, None)
            steps[step.fingerprint] = step
        return Selection(text, tuple(steps.values()), tuple(record.uid for record in whole), is_whole=True)
    chosen = _row(text, known) or _newest(text, _matches(text, store, known))
    if not chosen:
        names = {name for r in known for step in r.steps for name in (step.name, f"{r.experiment}/{step.name}")}
        if not names:
            raise ConfigError(
                f"{text}: nothing has been run in {store}; set MASKGIT_STORE where the store is elsewhere"
            )
        raise unknown_name("step", text, sorted(names)[:60], "step")
    fingerprints, experiment = {step.fingerprint for step in chosen}, chosen[0].experiment
    uids = [r.uid for r in known if r.experiment == experiment and fingerprints & set(r.by_fingerprint)]
    return Selection(text, tuple(chosen), tuple(uids))


def matches(text: str, store: Path) -> list[PipelineStep]:
    """Every step of any execution that `text` names, newest execution first; all of one kind of name."""
    return [step for _, step in _matches(text, store, records(store))]


def pick(
    text: str, candidates: Iterable[_T], names: Callable[[_T], Collection[str]], fingerprint: Callable[[_T], str]
) -> list[_T]:
    """The same rule among candidates that are no steps of a store: exact names, else the beginning of a fingerprint."""
    listed = list(candidates)
    exact = [candidate for candidate in listed if text in names(candidate)]
    if exact or not is_fingerprint(text):
        return exact
    return [candidate for candidate in listed if fingerprint(candidate).startswith(text)]


def is_fingerprint(text: str) -> bool:
    """True where a text may be the beginning of a fingerprint: 6 to 64 hex digits."""
    return re.fullmatch(r"[0-9a-f]{6,64}", text) is not None


def _names(record: PipelineRecord, step: PipelineStep) -> set[str]:
    own = {step.name, step.step}
    return own | {f"{head}/{name}" for head in (record.experiment, record.uid) for name in own}


def _row(text: str, known: Sequence[PipelineRecord]) -> list[PipelineStep]:
    """`EXPERIMENT/N` or `UID/N`: the N-th row of its status."""
    head, _, tail = text.rpartition("/")
    record = next((r for r in known if head and head in (r.experiment, r.uid)), None)
    if record is None or not tail.isdigit():
        return []
    if not 1 <= int(tail) <= len(record.steps):
        raise ConfigError(f"{text}: {head} has steps 1 to {len(record.steps)}, in the order of `maskgit status {head}`")
    return [replace(record.steps[int(tail) - 1], experiment=record.experiment)]


def _matches(
    text: str, store: Path, known: Sequence[PipelineRecord]
) -> list[tuple[PipelineRecord | None, PipelineStep]]:
    """Steps with the executions they were found in, where they were found by a name in these."""
    place = Path(text).expanduser()
    if (place / Request.FILE).is_file():
        return [(None, _stored(place.absolute()))]
    recorded = [(record, replace(step, experiment=record.experiment)) for record in known for step in record.steps]
    if named := [(record, step) for record, step in recorded if text in _names(record, step)]:
        return [*named]
    folders = Store(store).steps()
    if by_folder := [f for f in folders if text in (f.name, f"{f.parent.name}/{f.name}")]:
        return [(None, _stored(folder)) for folder in by_folder]
    if not is_fingerprint(text):
        return []
    begun = {step.fingerprint: step for _, step in reversed(recorded) if step.fingerprint.startswith(text)}
    for folder in folders:
        tail = folder.name.rpartition("-")[2]
        if (tail.startswith(text) or text.startswith(tail)) and (step := _stored(folder)).fingerprint.startswith(text):
            begun.setdefault(step.fingerprint, step)
    return [(None, step) for step in begun.values()]


def _newest(text: str, matching: Sequence[tuple[PipelineRecord | None, PipelineStep]]) -> list[PipelineStep]:
    """Those of the newest execution of their experiment; refused where experiments or fingerprints differ."""
    newest: dict[str | None, PipelineRecord | None] = {}
    groups: dict[str | None, dict[str, PipelineStep]] = {}
    for record, step in matching:
        if newest.setdefault(step.experiment, record) is record:
            groups.setdefault(step.experiment, {}).setdefault(step.fingerprint, step)
    steps = {fingerprint: step for group in groups.values() for fingerprint, step in group.items()}
    is_begun = is_fingerprint(text) and not any(record for record, _ in matching)
    if any(len(group) != len(steps) for group in groups.values()) or (is_begun and len(steps) > 1):
        names = _listed(f"{s.experiment}/{s.name} ({s.fingerprint[:12]})" for g in groups.values() for s in g.values())
        raise ConfigError(f"{text}: several different steps match; name one of {names}")
    return list(next(iter(groups.values()), {}).values())


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return f"[{', '.join(unique[:_LISTED])}{', ...' if len(unique) > _LISTED else ''}]"


def _stored(folder: Path) -> PipelineStep:
    """A step as its own documents describe it; its `folder` is absolute."""
    request, launch = Request.needed(folder), Launch.read(folder)
    return PipelineStep(
        name=launch.name if launch else folder.name,
        step=launch.step if launch else folder.parent.name,
        stage=request.stage,
        kind=request.kind,
        fingerprint=request.fingerprint,
        folder=str(folder),
        params=launch.params if launch else {},
        needs=tuple(source.fingerprint for source in request.sources),
        experiment=launch.experiment if launch else None,
    )
