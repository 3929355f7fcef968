"""Publishing the checkpoints that a training keeps (`keep_at`)."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.running.attempt import Attempt
from experiments.store.kept import INPUT, kept_fingerprint, kept_folder
from experiments.store.step_folder import link_files, list_outputs, manifest_digest
from maskgit_core.files import explain, read_json, sync, write_json


def publish_kept(attempt: Attempt, step: int, fill: Callable[[Path], object], facts: Mapping[str, Any]) -> None:
    """Publishes what `fill(files)` writes as the checkpoint kept after `step` steps, whole or not at all.

    A checkpoint that is there already and holds the same stays as it is.

    Raises:
        SupersededError: a newer attempt took over. ArtifactError: the disk is full or cannot be written.
    """
    parent = read_json(attempt.folder / "request.json") or {}
    of, place = str(parent.get("fingerprint", "")), kept_folder(attempt.folder, step)
    made = attempt.own / f"kept-{uuid.uuid4().hex[:8]}"
    try:
        files = made / "attempts" / f"{attempt.number:04d}" / "files"
        files.mkdir(parents=True)
        fill(files)
        link_files(made, attempt.number)
        outputs = list_outputs(files)
        relative = os.path.relpath(attempt.folder, attempt.folder.parent.parent)
        inputs = {INPUT: [{"fingerprint": of, "folder": relative}]}
        write_json(made / "request.json", {**parent, "fingerprint": kept_fingerprint(of, step), "inputs": inputs})
        manifest = {
            "format": 1,
            "fingerprint": kept_fingerprint(of, step),
            "kind": parent.get("kind", "model"),
            "attempt": attempt.number,
            "outputs": outputs,
            "facts": dict(facts),
            "inputs": read_json(attempt.folder / "made_from.json") or {},  # what the training was made from
            "digest": manifest_digest(outputs, facts),
            "time": time.time(),
        }
        write_json(made / "manifest.json", manifest)
        attempt.check_fence()
        _move(made, place, manifest)
    except OSError as error:
        raise explain(error, place) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move(made: Path, place: Path, manifest: Mapping[str, Any]) -> None:
    there = read_json(place / "manifest.json")
    if there is not None and all(there[key] == manifest[key] for key in ("digest", "inputs")):
        return
    if place.exists():
        place.rename(made / "replaced")
    place.parent.mkdir(exist_ok=True)
    made.rename(place)
    shutil.rmtree(place / "replaced", ignore_errors=True)
    sync(place.parent)
