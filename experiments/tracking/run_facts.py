"""What a run of the tracking window says of itself: tags, params, results and references, all from the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.store.journal import Point, read_lines
from experiments.store.records import files_of
from experiments.store.scores import named_values, read_scores
from maskgit_core.files import read_json

#: Outputs up to this size are uploaded when a stage asked to show them; everything else is a reference.
MAX_UPLOAD_BYTES = 8 * 1024 * 1024
#: Kind of what a step makes -> what it reads a data set for; of anything else it is a reference.
DATASET_CONTEXTS = {"tokenizer": "training", "model": "training", "tokens": "source", "scores": "evaluation",
                    "tokenizer_scores": "evaluation"}  # fmt: skip
#: What a step that makes data is known by, in its facts.
COUNTS = ("num_samples", "num_images")
#: The context under which a cache states its own shards.
TOKENS = "tokens"


def milliseconds(seconds: float) -> int:
    """Unix seconds as whole milliseconds."""
    return int(float(seconds) * 1000)


def common_tags(record: Mapping[str, Any]) -> dict[str, str]:
    code = record.get("code") or {}
    return {
        "experiment": str(record["experiment"]),
        "pipeline": str(record["uid"]),
        "sweep": "yes" if len(record.get("items") or ()) > 1 else "no",
        "commit": str(code.get("commit") or ""),
        "dirty": str(bool(code.get("dirty"))).lower(),
        "mlflow.user": str(record.get("user") or ""),
        "mlflow.source.name": str(record.get("command") or ""),
    }


def step_tags(
    store: Path,
    record: Mapping[str, Any],
    entry: Mapping[str, Any],
    state: str,
    mine: Sequence[Path],
    manifest: Mapping[str, Any] | None,
    request: Mapping[str, Any],
) -> dict[str, str]:
    params = entry.get("params") or {}
    seeds = [v for k, v in params.items() if k.rsplit(".", 1)[-1] == "seed"]
    seed = seeds[0] if seeds else (request.get("config") or {}).get("seed", "")
    tags = {
        **common_tags(record),
        "stage": str(entry["stage"]),
        "step": str(entry["step"]),
        "state": state,
        "fingerprint": str(entry["fingerprint"]),
        "item": ",".join(f"{k}={v}" for k, v in params.items()),
        "seed": str(seed),
        "folder": str(entry["folder"]),
        "upstream": " ".join(_upstream_uids(record, entry)),
        "attempts": str(len(mine)),
    }
    if manifest is not None and (headline := manifest.get("headline")):
        tags["headline"] = str(headline["name"])
        if headline.get("protocol"):
            tags["protocol"] = json.dumps(headline["protocol"], sort_keys=True)
    elif known := results(store / entry["folder"], manifest):
        tags["headline"] = known[0].metric
    if state == "reused" and manifest is not None:
        own = store / entry["folder"] / "attempts" / f"{int(manifest['attempt']):04d}"
        origin = (read_json(own / "start.json") or {}).get("pipeline")
        tags["reused_from"] = f"{origin}/{_name_in(store, origin, entry)}" if origin else str(entry["folder"])
    return {key: value for key, value in tags.items() if value != ""}


def _name_in(store: Path, uid: str, entry: Mapping[str, Any]) -> str:
    """The step's name in the execution that made it (a sweep may have named it otherwise)."""
    origin = read_json(store / "pipelines" / f"{uid}.json") or {}
    names = [s["name"] for s in origin.get("steps", ()) if s["fingerprint"] == entry["fingerprint"]]
    return str(names[0]) if names else str(entry["name"])


def _upstream_uids(record: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    names = {s["fingerprint"]: s["name"] for s in record["steps"]}
    return [f"{record['uid']}/{names[p]}" for p in entry.get("needs") or () if p in names]


def models_upstream(record: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Fingerprints of the checkpoints an evaluation is about: its samples' models, nearest first."""
    steps = {s["fingerprint"]: s for s in record["steps"]}
    queue, found = list(entry.get("needs") or ()), []
    while queue:
        step = steps.get(queue.pop(0))
        if step is None:
            continue
        if step["kind"] == "model":
            found.append(str(step["fingerprint"]))
        elif step["kind"] in ("samples", "scores"):
            queue += step.get("needs") or ()
    return tuple(dict.fromkeys(found))


def datasets(
    store: Path, folder: Path, request: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], ...]:
    """Data sets a step reads: those of its config with the digest of their content, the token shards a model is
    trained on, and what its stage stated."""
    kind = str(request.get("kind", ""))
    content = (read_json(folder / "launch.json") or {}).get("content") or {}
    found: list[Mapping[str, Any]] = []
    for key, module in (request.get("modules") or {}).items():
        outside = {k: v for k, v in (request.get("outside") or {}).items() if k.startswith(f"{key}.")}
        if ".datasets." not in str(module) or not outside:
            continue
        path = next((str(content[k]) for k in outside if k in content), "")
        name, context = request["config"][key]["name"], DATASET_CONTEXTS.get(kind, "reference")
        found.append({"name": name, "digest": "-".join(outside.values()), "path": path, "context": context})
    if kind == "model":
        for source in (s for sources in (request.get("inputs") or {}).values() for s in sources):
            made = read_json(store / source["folder"] / "manifest.json") or {}
            found += [{**d, "context": "training"} for d in made.get("datasets") or () if d["context"] == TOKENS]
    found += (manifest or {}).get("datasets") or ()
    return tuple({(d["name"], d["digest"]): d for d in reversed(found)}.values())[::-1]  # the first of equal ones


def results(folder: Path, manifest: Mapping[str, Any] | None) -> tuple[Point, ...]:
    """The number a step is known by and, of an evaluation, its other scores; at step 0 with the time it finished.

    A model is known by its last training loss, which is the point its journal holds; what makes data, by how much.
    """
    if manifest is None:
        return ()
    headline = manifest.get("headline")
    found = named_values(read_scores(files_of(folder, manifest), headline))
    if headline:
        found[str(headline["name"])] = float(headline["value"])
    points = [Point(name, 0, value, milliseconds(manifest["time"])) for name, value in sorted(found.items())]
    if not points and manifest.get("kind") == "model":
        points = _last_loss(files_of(folder, manifest).parent / "journal.jsonl")
    if not points and (count := _count(manifest.get("facts") or {})) is not None:
        points = [Point(count[0], 0, float(count[1]), milliseconds(manifest["time"]))]
    return tuple(points)


def _count(facts: Mapping[str, Any]) -> tuple[str, int] | None:
    reference = facts.get("reference")
    counts = {**(reference if isinstance(reference, Mapping) else {}), **facts}
    return next(((name, counts[name]) for name in COUNTS if isinstance(counts.get(name), int)), None)


def _last_loss(journal: Path, tail_bytes: int = 65536) -> list[Point]:
    """The last point of `loss`, from the journal's end alone; none where there is none."""
    try:
        size = journal.stat().st_size
    except OSError:
        return []
    lines, _ = read_lines(journal, max(0, size - tail_bytes))
    found = [line for line in lines if "loss" in line.get("metrics", {})]
    return [Point("loss", line["step"], line["metrics"]["loss"], line["time"]) for line in found[-1:]]


def uploads(folder: Path, manifest: Mapping[str, Any] | None) -> tuple[tuple[Path, str], ...]:
    """Small files that the stage asked to show, each with its folder in the window."""
    if manifest is None:
        return ()
    sizes = {name: output["size"] for name, output in manifest["outputs"].items()}
    shown = [n for n in manifest.get("shown") or () if sizes.get(n, MAX_UPLOAD_BYTES + 1) <= MAX_UPLOAD_BYTES]
    files = files_of(folder, manifest)
    return tuple((files / name, Path(name).parent.as_posix().strip(".")) for name in dict.fromkeys(shown))


def texts(folder: Path, request: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """Config, and the list of outputs as references (path, size, sha256): big files are never uploaded."""
    found = {"request.json": json.dumps(request, indent=2, sort_keys=True)}
    if manifest is not None:
        files = files_of(folder, manifest)
        listed = {
            name: {"path": str(files / name), "size": output["size"], "sha256": output["sha256"]}
            for name, output in manifest["outputs"].items()
        }
        found["outputs.json"] = json.dumps(listed, indent=2, sort_keys=True)
    return found


def model(folder: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A finished `model` artifact or a checkpoint it keeps as a logged model: a reference, nothing is uploaded."""
    if manifest is None or entry["kind"] != "model":
        return None
    weights = {n: o for n, o in manifest["outputs"].items() if n.endswith(".safetensors")}
    kept = folder.parent.name == "kept"
    name = f"{folder.parent.parent.name}-at-{int(folder.name)}" if kept else folder.name
    return {
        "name": name.replace(".", "-"),
        "fingerprint": str(entry["fingerprint"]),
        "digest": str(manifest.get("digest", "")),
        "path": str(files_of(folder, manifest)),
        "sha256": " ".join(f"{n}:{o['sha256']}" for n, o in sorted(weights.items()))[:4000],
        "size": str(sum(o["size"] for o in weights.values())),
    }
