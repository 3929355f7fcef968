"""Documents of steps that tests need but do not make by running a stage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.store.documents import Manifest, Notes, Request, manifest_digest
from experiments.store.paths import StepFolder


def write_request(folder: Path, kind: str = "model", fingerprint: str = "0" * 64, **keys: Any) -> Request:
    """A request in `folder`."""
    asked = {"stage": "train", "module": "", "version": 1, "config": {}, **keys}
    request = Request(kind=kind, fingerprint=fingerprint, **asked)
    request.write(folder)
    return request


def write_manifest(
    folder: Path, notes: Notes | None = None, inputs: Mapping[str, str] | None = None, attempt: int = 1
) -> Manifest:
    """Marks what lies in an attempt's files (perhaps nothing) as finished."""
    request = Request.read(folder) or write_request(folder)
    files = StepFolder(folder).attempt(attempt).files
    manifest = Manifest.of_files(request, attempt, files, notes or Notes(), inputs or {})
    manifest.write(folder)
    return manifest


def with_facts(folder: Path, **facts: Any) -> None:
    """Rewrites a manifest with other facts, and so with another digest."""
    manifest = Manifest.needed(folder)
    replace(manifest, facts=facts, digest=manifest_digest(manifest.outputs, facts)).write(folder)
