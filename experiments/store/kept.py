"""Checkpoints that a training keeps, as artifacts of their own: `train@50000`.

A kept checkpoint is in `kept/<step>/` of the training's folder, published whole by the training while it runs, with
a manifest like any finished step. Its fingerprint is a function of the training's and of the step number, so it
can be needed before it exists, and used as soon as it does: nothing of it changes when the training ends.
"""

from __future__ import annotations

from pathlib import Path

from experiments.store.documents import Manifest
from experiments.store.find import matches
from experiments.store.records import PipelineStep, records
from experiments.store.step_folder import Store
from experiments.store.typed_json import fingerprint
from maskgit_core.errors import ConfigError, suggestion

INPUT = "kept_of"


def kept_fingerprint(of: str, step: int) -> str:
    """The fingerprint of what the step with fingerprint `of` keeps after `step` steps."""
    return fingerprint({INPUT: of, "step": step})


def kept_folder(folder: Path, step: int) -> Path:
    """Where a training keeps its checkpoint of this step."""
    return folder / "kept" / f"{step:09d}"


def kept_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints a training has published so far, ascending."""
    return sorted(int(path.parent.name) for path in (folder / "kept").glob(f"[0-9]*/{Manifest.FILE}"))


def find_model(store: Store, text: str, step: int | None, key: str) -> Path:
    """The folder of the finished artifact (or kept checkpoint) that `STEP@N` means in a store.

    Args:
        text: a step's name, experiment/step, folder or fingerprint. step: N, or None for the finished result.

    Raises:
        ConfigError: nothing that is finished or kept matches, or several different things do; names them.
    """
    steps = [step for step in matches(text, store.root) if _is_model(step)]
    named = list(dict.fromkeys(store.root / step.folder for step in steps))
    if not named:
        models = [(r.experiment, step.step) for r in records(store.root) for step in r.steps if _is_model(step)]
        known = sorted({name for experiment, step in models for name in (step, f"{experiment}/{step}")})
        raise ConfigError(
            f"{key}: there is no step {text!r} in {store.root}; {suggestion(text, known)}"
            f"Known: [{', '.join(known[:30]) or 'nothing was run here'}]"
        )
    places = [place for folder in named if (place := _at(folder, step)) is not None]
    if len(places) > 1:
        names = ", ".join(sorted(f"{_owner(path).name}" for path in places))
        raise ConfigError(f"{key}: {text} means several: [{names}]; write one of these names instead")
    if not places:
        raise ConfigError(f"{key}: {_absent(named[0], step)}")
    return places[0]


def _is_model(step: PipelineStep) -> bool:
    return step.kind == "model" and "@" not in step.step


def _at(folder: Path, step: int | None) -> Path | None:
    manifest = Manifest.read(folder)
    if step is not None and (kept_folder(folder, step) / Manifest.FILE).is_file():
        return kept_folder(folder, step)
    ended = manifest is not None and step in (None, manifest.facts.get("num_train_steps"))
    return folder if ended else None


def _owner(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "kept" else path


def _absent(folder: Path, step: int | None) -> str:
    kept = ", ".join(map(str, kept_steps(folder))) or "none"
    done = Manifest.read(folder)
    if step is None:
        return f"{folder.name} is not finished; wait for it, or name a kept step as NAME@STEP (kept: [{kept}])"
    last = f", it ended at {done.facts.get('num_train_steps')}" if done else ", it is not finished"
    return f"{folder.name} keeps no checkpoint of step {step} (kept: [{kept}]{last}); set train.keep_every there"
