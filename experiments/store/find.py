"""Finds steps by what people type: a step's name, experiment/step, a fingerprint, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.store.records import latest_records
from experiments.store.step_folder import Store
from maskgit_core.errors import ConfigError, unknown_name
from maskgit_core.files import read_json


def default_store() -> Path:
    """The store that commands without an experiment look at: MASKGIT_STORE, else `runs`."""
    import os

    return Path(os.environ.get("MASKGIT_STORE", "runs")).expanduser().absolute()


def find_steps(text: str, store: Path) -> list[dict[str, Any]]:
    """The steps `text` means: entries with `name`, `folder` (absolute), `fingerprint`, newest execution first.

    Raises:
        ConfigError: nothing matches; lists what there is.
    """
    as_path = Path(text).expanduser()
    if (as_path / "request.json").is_file():
        return [_entry(as_path.absolute())]
    experiment, _, name = text.rpartition("/")
    records = latest_records(store, experiment or None)
    for record in records:
        steps = [s for s in record["steps"] if name in (s["name"], s["step"]) or s["fingerprint"].startswith(name)]
        if steps:
            return [{**s, "folder": store / s["folder"], "experiment": record["experiment"]} for s in steps]
    by_print = [p for p in Store(store).steps() if len(text) >= 6 and p.name.endswith(f"-{text[:8]}")]
    if by_print:
        return [_entry(p) for p in by_print]
    known = sorted({s["name"] for r in records for s in r["steps"]})
    if not known:
        raise ConfigError(f"{text}: nothing has been run in {store}; set MASKGIT_STORE where the store lies elsewhere")
    raise unknown_name("step", text, known[:60], "step")


def _entry(folder: Path) -> dict[str, Any]:
    request, launch = read_json(folder / "request.json") or {}, read_json(folder / "launch.json") or {}
    return {
        "name": launch.get("name", folder.name),
        "step": launch.get("step", folder.parent.name),
        "stage": request.get("stage", folder.parent.name),
        "fingerprint": request.get("fingerprint", ""),
        "folder": folder,
        "params": launch.get("params", {}),
        "needs": [e["fingerprint"] for entries in request.get("inputs", {}).values() for e in entries],
        "experiment": launch.get("experiment"),
    }
