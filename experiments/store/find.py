"""Finds steps by what people type: a step's name, experiment/step, a fingerprint, a folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from experiments.store.documents import Launch, Request
from experiments.store.records import PipelineStep, latest_records
from experiments.store.step_folder import Store
from maskgit_core.errors import ConfigError, unknown_name


def default_store() -> Path:
    """The store that commands without an experiment look at: MASKGIT_STORE, else `runs`."""
    return Path(os.environ.get("MASKGIT_STORE", "runs")).expanduser().absolute()


def find_steps(text: str, store: Path) -> list[PipelineStep]:
    """The steps `text` means, newest execution first; `store / step.folder` is the folder of each.

    Raises:
        ConfigError: nothing matches; lists what there is.
    """
    as_path = Path(text).expanduser()
    if (as_path / Request.FILE).is_file():
        return [_stored(as_path.absolute())]
    experiment, _, name = text.rpartition("/")
    records = latest_records(store, experiment or None)
    for record in records:
        steps = [s for s in record.steps if name in (s.name, s.step) or s.fingerprint.startswith(name)]
        if steps:
            return [replace(step, experiment=record.experiment) for step in steps]
    by_fingerprint = [p for p in Store(store).steps() if len(text) >= 6 and p.name.endswith(f"-{text[:8]}")]
    if by_fingerprint:
        return [_stored(p) for p in by_fingerprint]
    known = sorted({step.name for record in records for step in record.steps})
    if not known:
        raise ConfigError(f"{text}: nothing has been run in {store}; set MASKGIT_STORE where the store lies elsewhere")
    raise unknown_name("step", text, known[:60], "step")


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
