"""Damage to a store's documents: found, set aside as `NAME.damaged`, and repaired from what is known twice.

A manifest is rebuilt only where something else vouches for its digest: the step's record, a step that was made from it,
or the digest that is still legible in the damaged file. Without such a witness the step runs again, once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from experiments.store.claims import Owner
from experiments.store.documents import (
    End,
    Launch,
    Manifest,
    Notes,
    Record,
    Refusal,
    Request,
    Start,
    Submission,
)
from experiments.store.journal import journal_problem
from experiments.store.paths import StepFolder
from experiments.store.step_folder import Store, link_files
from experiments.store.typed_json import DamagedError, Document
from maskgit_core.errors import ArtifactError
from maskgit_core.files import explain, read_json, sha256_of

D = TypeVar("D", bound=Document)
STEP_DOCUMENTS: tuple[type[Document], ...] = (Request, Launch, Manifest, Record, Submission, Refusal, Owner)
ATTEMPT_DOCUMENTS: tuple[type[Document], ...] = (Start, End, Notes)


def damage(folder: Path) -> list[DamagedError]:
    """Every damaged document of a step."""
    return [problem for document, place in _documents(folder) if (problem := _problem(document, place)) is not None]


def _documents(folder: Path) -> Iterator[tuple[type[Document], Path]]:
    yield from ((document, folder) for document in STEP_DOCUMENTS)
    for attempt in StepFolder(folder).attempts():
        yield from ((document, attempt.path) for document in ATTEMPT_DOCUMENTS)


def _problem(document: type[Document], place: Path) -> DamagedError | None:
    try:
        document.read(place)
    except DamagedError as error:
        return error
    return None


def changed_outputs(folder: Path, manifest: Manifest) -> list[str]:
    """Outputs that are missing or differ from the manifest, each hashed whatever its size and time say."""
    files, problems = StepFolder(folder).attempt(manifest.attempt).files, []
    for name, known in manifest.outputs.items():
        path = files / name
        try:
            if path.stat().st_size != known.size or sha256_of(path) != known.sha256:
                problems.append(f"{path}: does not match the sha256 in its manifest; it was changed")
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}), but the step's manifest lists it")
    return problems


def changed_journals(folder: Path) -> list[str]:
    """Journals with damaged lines, or that differ from what the step's record says of them."""
    record = _sound(Record, folder)
    known = {a.number: a.journal for a in record.attempts} if record is not None else {}
    found = (journal_problem(a.journal, known.get(a.number)) for a in StepFolder(folder).attempts())
    return [problem for problem in found if problem is not None]


def repair_steps(store: Store, folders: Iterable[Path]) -> list[str]:
    """Sets damaged documents of these steps aside and rebuilds what can be; one line each.

    Raises:
        ArtifactError: the disk refuses.
    """
    lines = []
    for folder in folders:
        problems = damage(folder)
        if problems and Owner.FILE not in {problem.path.name for problem in problems}:
            lines += [_repair(store, folder, problem) for problem in problems]
        elif problems:
            raise next(problem for problem in problems if problem.path.name == Owner.FILE)
    return lines


def _repair(store: Store, folder: Path, problem: DamagedError) -> str:
    path = problem.path
    text = path.read_bytes()[:10_000_000] if path.is_file() else b""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise explain(error, path) from error
    rebuilt = _rebuild(store, folder, path, text)
    return f"{path}: was damaged ({problem.problem}); set aside as {aside.name}, {rebuilt}"


def _rebuild(store: Store, folder: Path, path: Path, text: bytes) -> str:
    record = _sound(Record, folder)
    if path.name == Manifest.FILE:
        return _rebuild_manifest(store, folder, record, text)
    if path.name == Request.FILE and record is not None and folder.name.endswith(record.request.fingerprint[:8]):
        record.request.write(folder)
        return "rebuilt from the step's record"
    if path.name == Launch.FILE and record is not None:
        record.launch.write(folder)
        return "rebuilt from the step's record"
    known = {a.number: a for a in record.attempts} if record is not None else {}
    if path.name == Start.FILE and (entry := known.get(int(path.parent.name))) is not None and entry.start is not None:
        entry.start.write(path.parent)
        return "rebuilt from the step's record"
    if path.name == End.FILE and (manifest := _sound(Manifest, folder)) and manifest.attempt == int(path.parent.name):
        End(state="done", reason="done", time=manifest.time).write(path.parent)
        return "rebuilt from the step's manifest"
    if path.name == Record.FILE:
        return "its provenance is lost; the result is as it was"
    return "its content is lost"


def _sound(document: type[D], folder: Path) -> D | None:
    with suppress(ArtifactError):
        return document.read(folder)
    return None


def _rebuild_manifest(store: Store, folder: Path, record: Record | None, text: bytes) -> str:
    step = StepFolder(folder)
    request = _sound(Request, folder) or (record.request if record else None)
    attempts = [a for a in step.attempts() if (end := _sound(End, a.path)) is not None and end.state == "done"]
    witnesses = {record.digest} if record is not None and record.digest else set()
    witnesses |= {match.decode() for match in re.findall(rb'"digest": "([0-9a-f]{64})"', text)}
    if request is None:
        return "its request is lost too, so the step runs again"
    for attempt in reversed(attempts):
        notes = _notes(folder, attempt.path, record)
        inputs = read_json(step.made_from)
        manifest = Manifest.of_files(request, attempt.number, attempt.files, notes, inputs or {})
        if manifest.digest in witnesses | _digests_used(store, request.fingerprint):
            if record is not None:
                manifest = replace(manifest, time=record.ended, seconds=record.ended - record.started)
            manifest.write(folder)
            link_files(folder, attempt.number)
            return "rebuilt; the outputs have the digest they had"
    return "nothing vouches for its outputs, so the step runs again"


def _notes(folder: Path, attempt: Path, record: Record | None) -> Notes:
    return _sound(Notes, attempt) or (record.notes if record else Notes())


def _digests_used(store: Store, fingerprint: str) -> set[str]:
    """Digests under which other finished steps used the result of this one."""
    manifests = (_sound(Manifest, folder) for folder in store.steps())
    return {m.inputs[fingerprint] for m in manifests if m is not None and fingerprint in m.inputs}


def repair_records(damaged: Sequence[DamagedError]) -> list[str]:
    """Sets damaged records of executions aside."""
    lines = []
    for problem in damaged:
        aside = problem.path.with_name(f"{problem.path.name}.damaged")
        os.replace(problem.path, aside)
        lines.append(f"{problem.path}: was damaged ({problem.problem}); set aside as {aside.name}")
    return lines
