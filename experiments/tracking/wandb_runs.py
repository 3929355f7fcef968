"""`tracking.also: [wandb]`: a step that has ended as an offline run of Weights & Biases; `wandb sync` sends it.

A project is an experiment, a group one execution of it, a run one step with its config, curves over the training's
step, scores as its summary and the pictures it shows. Nothing is sent: the run is written with `WANDB_MODE=offline`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.store.claims import Owner
from experiments.store.documents import Manifest, Request
from experiments.store.journal import Point
from experiments.store.paths import StepFolder
from experiments.tracking.also import Told, not_installed
from maskgit_core.errors import TrackingError
from maskgit_core.files import read_json, write_json

NAME = "wandb"
#: Metrics of the machine are logged over seconds, not over the training's step.
MACHINE, PICTURES = "system/", (".png", ".jpg", ".jpeg")


def write(step: Told) -> bool:
    """One step's offline run, written anew where it has more points than the last time; True where it was written.

    Raises:
        TrackingError: the package is not installed, or refuses the run.
    """
    if (step.folder / Owner.FILE).exists():  # a run is one file: it is written when all of it is there
        return False
    note, points = step.place / "written.json", step.points()
    if not points or read_json(note) == {"points": len(points)}:
        return False
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise not_installed(NAME) from None
    shutil.rmtree(step.place, ignore_errors=True)
    step.place.mkdir(parents=True)
    try:
        _write(wandb, step, points)
    except (wandb.Error, OSError) as error:
        raise TrackingError(
            f"tracking.also: {NAME}: {step.entry.name}: {' '.join(str(error).split())[:300]}"
        ) from error
    write_json(note, {"points": len(points)}, durable=False)
    return True


def _write(wandb: Any, step: Told, points: list[Point]) -> None:
    record, entry, request = step.record, step.entry, Request.read(step.folder)
    settings = wandb.Settings(
        mode="offline", silent=True, console="off", disable_git=True, save_code=False, root_dir=str(step.place),
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    )  # fmt: skip
    config: dict[str, Any] = {**(request.config if request else {}), **entry.params}
    config |= {"fingerprint": entry.fingerprint, "commit": record.code.commit, "command": record.command}
    name = f"{record.uid}/{entry.name}"
    run = wandb.init(
        project=record.experiment, group=record.uid, name=entry.name, job_type=entry.stage, notes=record.description,
        id=hashlib.sha256(name.encode()).hexdigest()[:16], config=config, dir=str(step.place), settings=settings,
        reinit="create_new",
    )  # fmt: skip
    try:
        run.define_metric("*", step_metric="step")
        run.define_metric(f"{MACHINE}*", step_metric=f"{MACHINE}seconds")
        for row in rows(points):
            run.log(row)
        if pictures := {path.stem: wandb.Image(str(path)) for path in _pictures(step)}:
            run.log(pictures)
        run.summary.update(step.scores())
    finally:
        run.finish()


def rows(points: list[Point]) -> list[Mapping[str, float]]:
    """Rows to log: the metrics of one step together, in the order of steps, each row with its step and time in s."""
    by_step: defaultdict[tuple[bool, int], dict[str, float]] = defaultdict(dict)
    for point in sorted(points, key=lambda p: p.time):
        machine = point.metric.startswith(MACHINE)
        row = by_step[machine, point.step]
        row |= {
            point.metric: point.value,
            f"{MACHINE}seconds" if machine else "step": point.step,
            "_timestamp": point.time / 1000,
        }
    return [row for _, row in sorted(by_step.items())]


def _pictures(step: Told) -> list[Path]:
    manifest = Manifest.read(step.folder)
    if manifest is None:
        return []
    files = StepFolder(step.folder).attempt(manifest.attempt).files
    return [path for name in manifest.shown if (path := files / name).suffix in PICTURES and path.is_file()]
