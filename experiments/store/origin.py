"""Origin of a finished step: the command for exactly it, its config and code, and whether a rerun equals it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.store import provenance
from experiments.store.documents import Code, Digests, Manifest, Record, Request, Start
from experiments.store.find import select
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, PipelineStep, records
from experiments.store.typed_json import Options
from maskgit_core.errors import ConfigError


@dataclass(frozen=True)
class Origin:
    """Where a finished step came from."""

    run: str  # <uid>/<step>
    name: str
    fingerprint: str
    folder: str
    command: str
    code: Code
    user: str
    host: str
    outside: Digests
    config: Options
    digest: str
    outputs: Digests  # sha256 by name


def origins(name: str, store: Path) -> list[Origin]:
    """Origins of the finished steps that `name` means (a step name, a run uid, a fingerprint).

    Raises:
        ConfigError: nothing matches, or it has not finished.
    """
    selection = select(name, store)
    # a whole execution is known by its last step
    return [_origin(entry, store) for entry in (selection.steps[-1:] if selection.is_whole else selection.steps)]


def _origin(entry: PipelineStep, store: Path) -> Origin:
    folder = store / entry.folder
    manifest, request, record = Manifest.read(folder), Request.needed(folder), Record.read(folder)
    if manifest is None:
        raise ConfigError(f"{entry.name}: has not finished ({folder}); maskgit status says why")
    start = Start.read(StepFolder(folder).attempt(manifest.attempt).path)
    pipeline = _execution(start.pipeline if start else None, entry.fingerprint, store)
    mine = pipeline.by_fingerprint.get(entry.fingerprint, entry)
    code = record.code if record else (start.code if start else Code())
    return Origin(
        run=f"{pipeline.uid}/{mine.name}",
        name=mine.name,
        fingerprint=entry.fingerprint,
        folder=str(folder),
        command=" ".join(["maskgit run", *(shlex.quote(o) for o in narrowed(pipeline, mine))]),
        code=code,
        user=pipeline.user or "?",
        host=pipeline.host or "?",
        outside=request.outside,
        config=request.config,
        digest=manifest.digest,
        outputs=_sha256s(manifest),
    )


def _sha256s(manifest: Manifest) -> Digests:
    return {name: output.sha256 for name, output in manifest.outputs.items()}


def _execution(uid: str | None, fingerprint: str, store: Path) -> PipelineRecord:
    """The execution that made a step, or any that holds it (adopted steps were made elsewhere)."""
    if (named := PipelineRecord.of(store, uid)) is not None:
        return named
    for record in records(store):
        if fingerprint in record.by_fingerprint:
            return record
    raise ConfigError(f"{fingerprint[:12]}: no execution in {store} holds this step; it cannot be traced to a command")


def narrowed(record: PipelineRecord, entry: PipelineStep) -> list[str]:
    """The overrides of an execution, its sweep narrowed to the item the step belongs to."""
    items = [i for i in record.items if entry.fingerprint in i.steps.values()]
    if len(record.items) <= 1 or not items:
        return list(record.overrides)
    point = items[0].params
    kept = [o for o in record.overrides if _key(o) not in point and _key(o) != "sweep"]
    return [*kept, "sweep=null", *(f"{k}={_value(v)}" for k, v in point.items())]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def code_difference(then: Code) -> str:
    """How the code here differs from the one behind a run; empty where it is the same."""
    now = provenance.code_state()
    if then.source_sha256:
        same = then.source_sha256 == (now.source_sha256 or provenance.source_digest())
        return "" if same else "the code here is not the installed package's that made the run"
    if not then.commit:
        return "its commit is unknown"
    if then.commit != now.commit:
        return f"the code here is at {str(now.commit)[:12]}, the run was made at {then.commit[:12]}"
    if then.diff_sha256 != now.diff_sha256:
        return "the code here has other uncommitted changes than the run's (--diff prints the run's)"
    return ""


def compare_outputs(origin: Origin, store: Path) -> list[str]:
    """Outputs of a rerun in another store that differ from the original's; one line each."""
    for record in records(store):
        if (entry := record.by_fingerprint.get(origin.fingerprint)) is not None:
            manifest = Manifest.read(store / entry.folder)
            again: Mapping[str, str] = _sha256s(manifest) if manifest else {}
            names = sorted({*again, *origin.outputs})
            return [f"{n} differs" for n in names if again.get(n) != origin.outputs.get(n)]
    return [f"the step {origin.name} got another fingerprint: data or code are not the original's"]
