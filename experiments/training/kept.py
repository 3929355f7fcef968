"""Publishing the checkpoints that a training keeps (`keep_at`)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.running.attempt import Attempt
from experiments.store.documents import Manifest, Notes, Request, Source
from experiments.store.kept import INPUT, kept_fingerprint, kept_folder
from experiments.store.paths import StepFolder
from experiments.store.step_folder import link_files
from experiments.store.typed_json import Options
from maskgit_core.files import explain, read_json, sync


def publish_kept(attempt: Attempt, step: int, fill: Callable[[Path], object], facts: Options) -> None:
    """Publishes what `fill(files)` writes as the checkpoint kept after `step` steps, whole or not at all.

    A checkpoint that is there already and holds the same stays as it is.

    Raises:
        SupersededError: a newer attempt took over. ArtifactError: the disk is full or cannot be written.
    """
    parent, place = Request.needed(attempt.folder), kept_folder(attempt.folder, step)
    made = attempt.own / f"kept-{uuid.uuid4().hex[:8]}"
    try:
        files = StepFolder(made).attempt(attempt.number).files
        files.mkdir(parents=True)
        fill(files)
        link_files(made, attempt.number)
        relative = os.path.relpath(attempt.folder, attempt.folder.parent.parent)
        source = Source(fingerprint=parent.fingerprint, folder=relative)
        request = replace(parent, fingerprint=kept_fingerprint(parent.fingerprint, step), inputs={INPUT: (source,)})
        request.write(made)
        made_from = read_json(StepFolder(attempt.folder).made_from) or {}  # the training's own inputs
        manifest = Manifest.of_files(request, attempt.number, files, Notes(facts=dict(facts)), made_from)
        manifest.write(made)
        attempt.check_fence()
        _move(made, place, manifest)
    except OSError as error:
        raise explain(error, place) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move(made: Path, place: Path, manifest: Manifest) -> None:
    there = Manifest.read(place)
    if there is not None and (there.digest, there.inputs) == (manifest.digest, manifest.inputs):
        return
    if place.exists():
        place.rename(made / "replaced")
    place.parent.mkdir(exist_ok=True)
    made.rename(place)
    shutil.rmtree(place / "replaced", ignore_errors=True)
    sync(place.parent)
