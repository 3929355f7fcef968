"""Records of pipeline runs in `<store>/pipelines`, and what the files say of their steps."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskgit_core.errors import unknown_name
from maskgit_core.files import read_json, write_json


def latest_records(store: Path, experiment: str | None = None) -> list[dict[str, Any]]:
    """The newest execution of every experiment (or of one), newest first."""
    newest: dict[str, dict[str, Any]] = {}
    for path in reversed(pipelines(store)):
        record = read_json(path)
        if record and record["experiment"] not in newest and experiment in (None, record["experiment"], record["uid"]):
            newest[record["experiment"]] = record
    if experiment is not None and not newest:
        names = {(read_json(p) or {}).get("experiment", "") for p in pipelines(store)}
        raise unknown_name("experiment", experiment, names, f"run in {store} of experiment")
    return list(newest.values())


def new_uid() -> str:
    """A sortable id of one execution: time and a random tail."""
    return time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:8]


def pipelines(store: Path, experiment: str | None = None) -> list[Path]:
    """The records of executions, oldest first; of one experiment where named."""
    found = sorted((store / "pipelines").glob("*.json"))
    if experiment is None:
        return found
    from maskgit_core.files import read_json

    return [p for p in found if (read_json(p) or {}).get("experiment") == experiment]


def step_params(entry: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Own config (`train.lr`, `sampler.guidance_scale`) and the sweep's values from upstream, as text."""
    flat: dict[str, str] = {}
    for key, value in (request.get("config") or {}).items():
        if isinstance(value, Mapping):
            _flatten(str(key), value, flat)
        else:
            flat[f"{entry['step']}.{key}"] = _text(value)
    for key, value in (entry.get("params") or {}).items():
        _flatten(str(key), value, flat)
    return flat


def effective_config(
    store: Path, steps: Mapping[str, Mapping[str, Any]], entry: Mapping[str, Any]
) -> tuple[dict[str, str], list[Path]]:
    """Config of a step and of everything it was made from, and the folders of the latter, nearest first.

    Args:
        steps: the execution's entries by fingerprint. A step's own value wins over one from further up.
    """
    config: dict[str, str] = {}
    upstream, queue, seen = [], [entry["fingerprint"]], set()
    while queue:
        step = steps.get(queue.pop(0))
        if step is None or step["fingerprint"] in seen:
            continue
        seen.add(step["fingerprint"])
        if step is not entry:
            upstream.append(store / step["folder"])
        config = {**step_params(step, read_json(store / step["folder"] / "request.json") or {}), **config}
        queue += step.get("needs") or ()
    return config, upstream


def _flatten(prefix: str, value: Any, into: dict[str, str]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}", inner, into)
    else:
        into[prefix] = _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def files_of(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Where the outputs of a finished attempt lie, also after it was set aside."""
    return folder / "attempts" / f"{int(manifest['attempt']):04d}" / "files"


def records(store: Path) -> list[dict[str, Any]]:
    """All records of executions, newest first."""
    found = (read_json(path) for path in reversed(pipelines(store)))
    return [record for record in found if record]


def mark_cancelled(store: Path, uids: Sequence[str]) -> None:
    """Notes that these executions were cancelled as a whole: they count on nothing any more."""
    for uid in uids:
        write_json(store / "pipelines" / "cancelled" / f"{uid}.json", {"uid": uid}, durable=False)


def is_cancelled(store: Path, uid: str) -> bool:
    """True where `mark_cancelled` was told of this execution."""
    return (store / "pipelines" / "cancelled" / f"{uid}.json").exists()
