"""Tags, results and references of an MLflow run, derived from the step's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config.settings import without_password
from experiments.store.documents import DatasetUse, Launch, Manifest, Request, Start
from experiments.store.journal import Point, read_lines
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, PipelineStep
from experiments.store.scores import describe_metric, named_values, read_scores
from experiments.store.typed_json import Options, plain

#: Outputs up to this size are uploaded when a stage asked to show them; everything else is a reference.
MAX_UPLOAD_BYTES = 8 * 1024 * 1024
#: Kind of what a step makes -> what it reads a dataset for; of anything else it is a reference.
DATASET_CONTEXTS = {"tokenizer": "training", "model": "training", "tokens": "source", "scores": "evaluation",
                    "tokenizer_scores": "evaluation"}  # fmt: skip
#: What a step that makes data is known by, in its facts.
COUNTS = ("num_samples", "num_images")
#: The context under which a cache states its own shards.
TOKENS = "tokens"


def milliseconds(seconds: float) -> int:
    """Unix seconds as whole milliseconds."""
    return int(float(seconds) * 1000)


def common_tags(record: PipelineRecord) -> dict[str, str]:
    mixed = _mixed_code(record)
    return {
        "experiment": record.experiment,
        "pipeline": record.uid,
        "sweep": "yes" if len(record.items) > 1 else "no",
        "commit": record.code.commit or "",
        "dirty": str(record.code.dirty).lower(),
        **({"mixed_code": mixed} if mixed else {}),
        "mlflow.user": record.user,
        "mlflow.source.name": without_password(record.command),
    }


def asked(record: PipelineRecord) -> list[str]:
    """The values that a request adds to its experiment, as typed: what tells its executions apart."""
    not_of_it = ("experiment=", "paths.", "launcher", "tracking.", "resources.")
    words = [without_password(w) for w in record.overrides if "=" in w and not w.lstrip("+~").startswith(not_of_it)]
    return words[:4] + (["..."] if len(words) > 4 else [])


def headlines(steps: Sequence[Any]) -> tuple[Point, ...]:
    """The numbers an execution is known by: its evaluation's scores; of several evaluations the best of each headline.

    Args:
        steps: its `Run`s.
    """
    kinds = ("scores", "tokenizer_scores")
    scored = next((of_kind for kind in kinds if (of_kind := [s for s in steps if s.kind == kind and s.results])), [])
    if len(scored) == 1:
        return tuple(scored[0].results)
    best: dict[str, Point] = {}
    for point in (p for s in scored for p in s.results if p.metric == s.tags.get("headline")):
        known = describe_metric(point.metric)
        better = max if known is not None and known[1] is False else min
        best[point.metric] = better(best.get(point.metric, point), point, key=lambda p: p.value)
    return tuple(best.values())


def _mixed_code(record: PipelineRecord) -> str:
    """The swept steps of an execution of which some points were reused from other code than the rest was made by."""
    codes: dict[str, set[tuple[str, ...]]] = {}
    for entry in record.steps:
        codes.setdefault(entry.step, set()).add(entry.old_code)
    return " ".join(sorted(step for step, digests in codes.items() if len(digests) > 1))


def step_tags(
    store: Path,
    record: PipelineRecord,
    entry: PipelineStep,
    state: str,
    num_attempts: int,
    manifest: Manifest | None,
    request: Request | None,
) -> dict[str, str]:
    seeds = [v for k, v in entry.params.items() if k.rsplit(".", 1)[-1] == "seed"]
    seed = seeds[0] if seeds else (request.config if request else {}).get("seed", "")
    tags = {
        **common_tags(record),
        "stage": entry.stage,
        "step": entry.step,
        "state": state,
        "fingerprint": entry.fingerprint,
        "item": ",".join(f"{k}={v}" for k, v in entry.params.items()),
        "seed": str(seed),
        "folder": entry.folder,
        "upstream": " ".join(_upstream_uids(record, entry)),
        "attempts": str(num_attempts),
        "old_code": " ".join(entry.old_code)[:4000],
    }
    if manifest is not None and (headline := manifest.headline):
        tags["headline"] = headline.name
        if headline.protocol:
            tags["protocol"] = json.dumps(headline.protocol, sort_keys=True)
    elif known := results(store / entry.folder, manifest):
        tags["headline"] = known[0].metric
    if state == "reused" and manifest is not None:
        start = Start.read(StepFolder(store / entry.folder).attempt(manifest.attempt).path)
        origin = start.pipeline if start else None
        tags["reused_from"] = f"{origin}/{_name_in(store, origin, entry)}" if origin else entry.folder
    return {key: value for key, value in tags.items() if value != ""}


def _name_in(store: Path, uid: str, entry: PipelineStep) -> str:
    """The step's name in the execution that made it (a sweep may have named it otherwise)."""
    origin = PipelineRecord.of(store, uid)
    return (origin.by_fingerprint if origin else {}).get(entry.fingerprint, entry).name


def _upstream_uids(record: PipelineRecord, entry: PipelineStep) -> list[str]:
    steps = record.by_fingerprint
    return [f"{record.uid}/{steps[need].name}" for need in entry.needs if need in steps]


def models_upstream(record: PipelineRecord, entry: PipelineStep) -> tuple[str, ...]:
    """Fingerprints of the checkpoints an evaluation is about: its samples' models, nearest first."""
    steps = record.by_fingerprint
    queue, models = list(entry.needs), []
    while queue:
        step = steps.get(queue.pop(0))
        if step is None:
            continue
        if step.kind == "model":
            models.append(step.fingerprint)
        elif step.kind in ("samples", "scores"):
            queue += step.needs
    return tuple(dict.fromkeys(models))


def datasets(store: Path, folder: Path, request: Request, manifest: Manifest | None) -> tuple[DatasetUse, ...]:
    """Datasets a step reads: those of its config with the digest of their content, the token shards a model is
    trained on, and those its stage stated."""
    launch = Launch.read(folder)
    content = launch.content if launch else {}
    uses: list[DatasetUse] = []
    for key, module in request.modules.items():
        outside = {k: v for k, v in request.outside.items() if k.startswith(f"{key}.")}
        if ".datasets." not in module or not outside:
            continue
        path = next((str(content[k]) for k in outside if k in content), "")
        name, context = request.config[key]["name"], DATASET_CONTEXTS.get(request.kind, "reference")
        uses.append(DatasetUse(name=name, digest="-".join(outside.values()), path=path, context=context))
    if request.kind == "model":
        for source in request.sources:
            made = Manifest.read(store / source.folder)
            shards = [use for use in (made.datasets if made else ()) if use.context == TOKENS]
            uses += [replace(use, context="training") for use in shards]
    uses += manifest.datasets if manifest else ()
    return tuple({(use.name, use.digest): use for use in reversed(uses)}.values())[::-1]  # the first of equal ones


def results(folder: Path, manifest: Manifest | None) -> tuple[Point, ...]:
    """The number a step is known by and, of an evaluation, its other scores; at step 0 with the time it finished.

    A model is known by its last training loss, which is the point its journal holds; what makes data, by how much.
    """
    if manifest is None:
        return ()
    attempt = StepFolder(folder).attempt(manifest.attempt)
    values = named_values(read_scores(attempt.files, manifest.headline))
    if manifest.headline:
        values[manifest.headline.name] = manifest.headline.value
    points = [Point(name, 0, value, milliseconds(manifest.time)) for name, value in sorted(values.items())]
    if not points and manifest.kind == "model":
        points = _last_loss(attempt.journal)
    if not points and (count := _count(manifest.facts)) is not None:
        points = [Point(count[0], 0, float(count[1]), milliseconds(manifest.time))]
    return tuple(points)


def _count(facts: Options) -> tuple[str, int] | None:
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
    losses = [Point("loss", line.step, line.metrics["loss"], line.time) for line in lines if "loss" in line.metrics]
    return losses[-1:]


def uploads(folder: Path, manifest: Manifest | None) -> tuple[tuple[Path, str], ...]:
    """Small files that the stage asked to show, each with its artifact folder."""
    if manifest is None:
        return ()
    sizes = {name: output.size for name, output in manifest.outputs.items()}
    shown = [name for name in manifest.shown if sizes.get(name, MAX_UPLOAD_BYTES + 1) <= MAX_UPLOAD_BYTES]
    files = StepFolder(folder).attempt(manifest.attempt).files
    return tuple((files / name, Path(name).parent.as_posix().strip(".")) for name in dict.fromkeys(shown))


def texts(folder: Path, request: Request, manifest: Manifest | None) -> dict[str, str]:
    """Config, and the list of outputs as references (path, size, sha256): big files are never uploaded."""
    written = {Request.FILE: json.dumps(plain(request), indent=2, sort_keys=True)}
    if manifest is not None:
        files = StepFolder(folder).attempt(manifest.attempt).files
        listed = {
            name: {"path": str(files / name), "size": output.size, "sha256": output.sha256}
            for name, output in manifest.outputs.items()
        }
        written["outputs.json"] = json.dumps(listed, indent=2, sort_keys=True)
    return written


def model(folder: Path, entry: PipelineStep, manifest: Manifest | None) -> Mapping[str, str] | None:
    """A finished `model` artifact or a checkpoint it keeps as a logged model: a reference, nothing is uploaded."""
    if manifest is None or entry.kind != "model":
        return None
    weights = {n: o for n, o in manifest.outputs.items() if n.endswith(".safetensors")}
    kept = folder.parent.name == "kept"
    name = f"{folder.parent.parent.name}-at-{int(folder.name)}" if kept else folder.name
    return {
        "name": name.replace(".", "-"),
        "fingerprint": entry.fingerprint,
        "digest": manifest.digest,
        "path": str(StepFolder(folder).attempt(manifest.attempt).files),
        "sha256": " ".join(f"{name}:{output.sha256}" for name, output in sorted(weights.items()))[:4000],
        "size": str(sum(output.size for output in weights.values())),
    }
