"""Builds a store as executions leave it: pipelines, step folders, attempts with journals. Used by tracking tests."""

import json
import time
from dataclasses import replace
from pathlib import Path

from experiments.store.documents import Manifest, Notes, Request
from experiments.store.typed_json import fingerprint, parse
from maskgit_core.files import write_json

T0 = 1_790_000_000.0


class TrackedStore:
    """A store with one pipeline `uid`; steps are added with `step`, attempts with `attempt`."""

    def __init__(self, root: Path, uid: str = "20260101-000000-aaaaaaaa", experiment: str = "toy") -> None:
        self.root, self.uid, self.experiment = root, uid, experiment
        self.steps: list[dict] = []
        self.settings: dict = {}

    @property
    def parent_name(self) -> str:
        return f"{self.experiment} {self.uid[:15]}"

    def write(self, **extra) -> None:
        record = {
            "uid": self.uid, "experiment": self.experiment, "command": f"maskgit run experiment={self.experiment}",
            "description": "a toy", "user": "ada", "host": "h", "time": T0, "overrides": [],
            "code": {"commit": "c" * 40, "dirty": False}, "settings": self.settings,
            "items": [{"params": {}, "steps": {}}],
            "steps": self.steps, **extra,
        }  # fmt: skip
        write_json(self.root / "pipelines" / f"{self.uid}.json", record)

    def step(self, name: str, stage: str, kind: str, config: dict, needs=(), params=None) -> Path:
        identity = fingerprint({"stage": stage, "config": config, "needs": list(needs)})
        folder = self.root / stage / f"{stage}-{identity[:8]}"
        entry = {
            "name": name, "step": name.split("[")[0], "stage": stage, "kind": kind, "fingerprint": identity,
            "folder": str(folder.relative_to(self.root)), "params": params or {}, "needs": list(needs),
            "action": "run", "reason": "",
        }  # fmt: skip
        self.steps.append(entry)
        folder.mkdir(parents=True, exist_ok=True)
        Request(fingerprint=identity, stage=stage, module="", version=1, kind=kind, config=config).write(folder)
        self.write()
        return folder

    def attempt(self, folder: Path, number: int = 1, at: float = T0 + 10) -> Path:
        own = folder / "attempts" / f"{number:04d}"
        (own / "files").mkdir(parents=True, exist_ok=True)
        write_json(own / "start.json", {"time": at, "pipeline": self.uid, "attempt": number})
        return own

    def done(self, folder: Path, number: int = 1, headline=None, shown=(), datasets=(), at: float = T0 + 100) -> None:
        own = folder / "attempts" / f"{number:04d}"
        write_json(own / "end.json", {"state": "done", "time": at})
        notes = parse(Notes, {"headline": headline, "shown": list(shown), "datasets": list(datasets)})
        made = Manifest.of_files(Request.needed(folder), number, own / "files", notes, {})
        replace(made, time=at, seconds=90.0).write(folder)


def lines(path: Path, points, start_ms: int | None = None, resumed_at: int | None = None) -> None:
    """Appends journal lines `[(step, {metric: value})]` with fixed, growing times."""
    clock = start_ms if start_ms is not None else int(time.time() * 1000)
    with open(path, "a") as file:
        if resumed_at is not None:
            file.write(json.dumps({"resumed_at": resumed_at, "time": clock}) + "\n")
        for step, metrics in points:
            clock += 1
            file.write(json.dumps({"step": step, "time": clock, "metrics": metrics}) + "\n")


def write_scores(files: Path, protocol_name: str, protocol: dict, num_images: int = 5, **scores: float) -> None:
    """`scores.json` as the evaluation stages write it."""
    rows = [
        {"name": name, "of": "samples", "value": value, "num_images": num_images, "protocol": protocol_name}
        for name, value in scores.items()
    ]
    write_json(files / "scores.json", {"scores": rows, "protocols": {protocol_name: protocol}})
