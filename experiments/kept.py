"""Checkpoints that a training keeps, as artifacts of their own: `train@50000`.

A kept checkpoint lies in `kept/<step>/` of the training's folder, published whole by the training while it runs, with
a `manifest.json` like any finished step. Its fingerprint is a function of the training's and of the step number, so it
can be needed before it exists, and used as soon as it does: nothing of it changes when the training ends.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.artifacts import Store, fingerprint, link_files, list_outputs, manifest_digest
from experiments.atomic import explain, read_json, sync, write_json
from experiments.attempt import Attempt
from experiments.door import StepRequest
from experiments.values import suggestion
from maskgit_core.errors import ArtifactError, ConfigError

INPUT = "kept_of"


def kept_fingerprint(of: str, step: int) -> str:
    """The fingerprint of what the step with fingerprint `of` keeps after `step` steps."""
    return fingerprint({INPUT: of, "step": step})


def kept_folder(folder: Path, step: int) -> Path:
    """Where a training keeps its checkpoint of this step."""
    return folder / "kept" / f"{step:09d}"


def kept_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints a training has published so far, ascending."""
    return sorted(int(path.parent.name) for path in (folder / "kept").glob("[0-9]*/manifest.json"))


def check_is_kept(request: StepRequest, step: int, key: str) -> bool:
    """Whether `step` is just the training's end, of which it keeps nothing apart; the finished model is meant then.

    Raises:
        ConfigError: the training will not keep a checkpoint of this step.
    """
    every, last = request.config.get("keep_every"), request.config.get("num_train_steps")
    if last is None or "keep_every" not in request.config:
        raise ConfigError(f"{key}: {request.name} keeps no checkpoints; write {request.name} instead of its @{step}")
    kept = every is not None and step % every == 0 and step <= last
    if not kept and step != last:
        raise ConfigError(
            f"{key}: {request.name} keeps no checkpoint of step {step} ({request.name}.keep_every is "
            f"{every or 'null'}, it ends at {last}); set {request.name}.keep_every to a divisor of {step}"
        )
    return not kept


def stored_request(folder: Path, name: str) -> tuple[StepRequest, str]:
    """What a finished step of the store was asked for, as far as those who use it must know, and its fingerprint."""
    request = read_json(folder / "request.json")
    if request is None:
        raise ArtifactError(f"{folder}: is not a step's folder (request.json is missing); name another")
    known = {key: request[key] for key in ("stage", "module", "version", "kind", "config", "identity", "modules")}
    asked = StepRequest(name=name, execution={}, content={}, weights={}, needs={}, **known)
    return asked, str(request["fingerprint"])


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


def find_model(store: Store, text: str, step: int | None, key: str) -> Path:
    """The folder of the finished artifact (or kept checkpoint) that `STEP@N` means in a store.

    Args:
        text: a step's name, experiment/step, folder or fingerprint. step: N, or None for the finished result.

    Raises:
        ConfigError: nothing that is finished or kept matches, or several different things do; names them.
    """
    named = _named(store, text)
    if not named:
        known = sorted({name for names in _names(store).values() for name in names if "[" not in name})
        raise ConfigError(
            f"{key}: there is no step {text!r} in {store.root}; {suggestion(text, known)}"
            f"Known: [{', '.join(known[:30]) or 'nothing was run here'}]"
        )
    found = [place for folder in named if (place := _at(folder, step)) is not None]
    if len(found) > 1:
        names = ", ".join(sorted(f"{_owner(path).name}" for path in found))
        raise ConfigError(f"{key}: {text} means several: [{names}]; write one of these names instead")
    if not found:
        raise ConfigError(f"{key}: {_absent(named[0], step)}")
    return found[0]


def _at(folder: Path, step: int | None) -> Path | None:
    manifest = read_json(folder / "manifest.json")
    if step is not None and (kept_folder(folder, step) / "manifest.json").is_file():
        return kept_folder(folder, step)
    ended = manifest is not None and step in (None, manifest.get("facts", {}).get("num_train_steps"))
    return folder if ended else None


def _owner(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "kept" else path


def _absent(folder: Path, step: int | None) -> str:
    kept = ", ".join(map(str, kept_steps(folder))) or "none"
    done = read_json(folder / "manifest.json")
    if step is None:
        return f"{folder.name} is not finished; wait for it, or name a kept step as NAME@STEP (kept: [{kept}])"
    last = f", it ended at {done.get('facts', {}).get('num_train_steps')}" if done else ", it is not finished"
    return f"{folder.name} keeps no checkpoint of step {step} (kept: [{kept}]{last}); set train.keep_every there"


def _named(store: Store, text: str) -> list[Path]:
    """The step folders that a text means, each once."""
    path = Path(text).expanduser()
    if (path / "request.json").is_file():
        return [path.absolute()]
    by_name = [folder for folder, names in _names(store).items() if text in names]
    if by_name:
        return by_name
    return [f for f in store.steps() if text == f.name or (len(text) >= 8 and f.name.endswith(f"-{text[:8]}"))]


def _names(store: Store) -> dict[Path, set[str]]:
    """What every model of the store has been called: step, item, and both with the experiment before them."""
    found: dict[Path, set[str]] = {}
    for record in filter(None, map(read_json, sorted((store.root / "pipelines").glob("*.json")))):
        for entry in record["steps"]:
            if entry["kind"] == "model" and "@" not in entry["step"]:
                names = found.setdefault(store.root / entry["folder"], set())
                names |= {name for n in (entry["step"], entry["name"]) for name in (n, f"{record['experiment']}/{n}")}
    return found
