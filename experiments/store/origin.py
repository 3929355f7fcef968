"""Where a finished step came from: the command for exactly it, its config, its code, and whether a rerun equals it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.store import provenance
from experiments.store.find import find_steps
from experiments.store.records import pipelines
from maskgit_core.errors import ConfigError
from maskgit_core.files import read_json


def origins(name: str, store: Path) -> list[dict[str, Any]]:
    """What is known of the finished steps that `name` means (a step name, a run uid, a fingerprint).

    Raises:
        ConfigError: nothing matches, or it has not finished.
    """
    uid, _, step = name.partition("/")
    record = read_json(store / "pipelines" / f"{uid}.json")
    if record is not None:
        entries = [s for s in record["steps"] if not step or step in (s["name"], s["step"])]
        if not step:  # a whole execution is known by its last step
            entries = entries[-1:]
        entries = [{**e, "folder": store / e["folder"]} for e in entries]
        if not entries:
            raise ConfigError(
                f"{name}: this run has no such step; one of [{', '.join(s['name'] for s in record['steps'])}]"
            )
    else:
        entries = find_steps(name, store)
    return [_origin(entry, store) for entry in entries]


def _origin(entry: Mapping[str, Any], store: Path) -> dict[str, Any]:
    folder = Path(entry["folder"])
    manifest, request = read_json(folder / "manifest.json"), read_json(folder / "request.json") or {}
    if manifest is None:
        raise ConfigError(f"{entry['name']}: has not finished ({folder}); maskgit status says why")
    record = read_json(folder / "record.json") or {}
    start = read_json(folder / "attempts" / f"{int(manifest['attempt']):04d}" / "start.json") or {}
    pipeline = _execution(start.get("pipeline"), entry["fingerprint"], store)
    mine = next((s for s in pipeline["steps"] if s["fingerprint"] == entry["fingerprint"]), entry)
    return {
        "run": f"{pipeline['uid']}/{mine['name']}",
        "name": mine["name"],
        "fingerprint": entry["fingerprint"],
        "folder": str(folder),
        "command": " ".join(["maskgit run", *(shlex.quote(o) for o in narrowed(pipeline, mine))]),
        "code": record.get("code") or start.get("code") or {},
        "user": pipeline.get("user", "?"),
        "host": pipeline.get("host", "?"),
        "outside": request.get("outside", {}),
        "config": request.get("config", {}),
        "digest": manifest.get("digest", ""),
        "outputs": {n: o["sha256"] for n, o in manifest["outputs"].items()},
    }


def _execution(uid: str | None, fingerprint: str, store: Path) -> dict[str, Any]:
    """The execution that made a step, or any that holds it (adopted steps were made elsewhere)."""
    named = read_json(store / "pipelines" / f"{uid}.json") if uid else None
    if named is not None:
        return dict(named)
    for path in reversed(pipelines(store)):
        record = read_json(path)
        if record and any(s["fingerprint"] == fingerprint for s in record["steps"]):
            return dict(record)
    raise ConfigError(f"{fingerprint[:12]}: no execution in {store} holds this step; it cannot be traced to a command")


def narrowed(record: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """The overrides of an execution, its sweep narrowed to the item the step belongs to."""
    items = [i for i in record.get("items", ()) if entry["fingerprint"] in i["steps"].values()]
    overrides = list(record.get("overrides", ()))
    if len(record.get("items", ())) <= 1 or not items:
        return overrides
    point = items[0]["params"]
    kept = [o for o in overrides if _key(o) not in point and _key(o) != "sweep"]
    return [*kept, "sweep=null", *(f"{k}={_value(v)}" for k, v in point.items())]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def code_difference(origin: Mapping[str, Any]) -> str:
    """How the code here differs from the one behind a run; empty where it is the same."""
    then, now = origin["code"], provenance.code_state()
    if not then.get("commit"):
        return "its commit is unknown"
    if then.get("commit") != now.get("commit"):
        return f"the code here is at {str(now.get('commit'))[:12]}, the run was made at {str(then['commit'])[:12]}"
    if then.get("diff_sha256") != now.get("diff_sha256"):
        return "the code here has other uncommitted changes than the run's (--diff prints the run's)"
    return ""


def compare_outputs(origin: Mapping[str, Any], store: Path) -> list[str]:
    """Outputs of a rerun in another store that differ from the original's; one line each."""
    for path in reversed(pipelines(store)):
        record = read_json(path) or {"steps": []}
        for entry in record["steps"]:
            if entry["fingerprint"] == origin["fingerprint"]:
                manifest = read_json(store / entry["folder"] / "manifest.json") or {"outputs": {}}
                found = {n: o["sha256"] for n, o in manifest["outputs"].items()}
                names = sorted({*found, *origin["outputs"]})
                return [f"{n} differs" for n in names if found.get(n) != origin["outputs"].get(n)]
    return [f"the step {origin['name']} got another fingerprint: data or code are not the original's"]
