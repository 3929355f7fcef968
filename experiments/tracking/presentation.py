"""The look of MLflow for a researcher: notes of experiments, chosen columns, models with their scores.

Works through a client it is given and imports no tracker.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from experiments.config.compose import CONF
from experiments.tracking.runs import Run

#: MLflow's tag of a shared view of an experiment's runs; its page takes the view that the address names.
VIEW_TAG, VIEW = "mlflow.sharedViewState.", "maskgit"
MAX_COLUMNS = 14


def deep_link(base: str, experiment_id: str) -> str:
    """The page of an experiment's runs, as training runs (not chats), with the columns of `columns`."""
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def columns(runs: Sequence[Run]) -> list[str]:
    """MLflow's names of the columns worth showing: duration, scores, swept values, what differs between executions."""
    kind = "scores" if any(run.kind == "scores" for run in runs) else "tokenizer_scores"
    scores = dict.fromkeys(p.metric for run in runs if run.kind == kind for p in run.results)
    heads = dict.fromkeys(run.tags["headline"] for run in runs if run.kind == "scores" and "headline" in run.tags)
    first = [*heads, *(name for name in scores if name not in heads and "/" not in name)]
    swept = dict.fromkeys(key for run in runs for key in run.swept)
    judged = [run for run in runs if run.kind == "scores"]
    keys = dict.fromkeys(key for run in judged for key in run.params)
    varied = [key for key in keys if key not in swept and len({run.params.get(key) for run in judged}) > 1]
    chosen = [f"params.`{key}`" for key in swept] + [f"metrics.`{name}`" for name in first[:6]]
    return ["attributes.`Duration`", *chosen, *(f"params.`{key}`" for key in varied)][:MAX_COLUMNS]


def view(runs: Sequence[Run]) -> str:
    """The content of the tag that holds the view: MLflow's state of the page, deflated."""
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns(runs),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runListHidden": False,
        "viewMaximized": False,
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def note(experiment: str, description: str) -> str:
    """An experiment's note: its description, and what its file says of purpose, expected numbers and cost."""
    path, told = CONF / "experiment" / f"{experiment}.yaml", []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if match := re.match(r"#\s+(Purpose|Method|Expected|Cost|Command)\s+(.*)", line):
                told.append(f"**{match[1]}** {match[2]}")
            elif told and (more := re.match(r"#\s{6,}(.*)", line)):
                told[-1] += f" {more[1]}"
    return "\n\n".join([description, *told]).strip()


def dress(client: Any, experiments: Mapping[str, str], runs: Sequence[Run], run_ids: Mapping[str, str]) -> None:
    """Writes notes and views of the experiments that runs belong to, and registers their models.

    Args:
        experiments: name -> id; run_ids: uid -> id.
    """
    for name, experiment_id in experiments.items():
        own = [run for run in runs if run.experiment == name]
        described = next((t for run in own if (t := run.tags.get("mlflow.note.content"))), "")
        tags = {"mlflow.note.content": note(name, described), VIEW_TAG + VIEW: view(own)}
        present = client.get_experiment(experiment_id).tags
        for key, value in tags.items():
            if present.get(key) != value and len(value) < 5000:
                client.set_experiment_tag(experiment_id, key, value)
        for run in own:
            if run.model is not None and run.uid in run_ids:
                with suppress(Exception):  # a tracking store without a registry still shows its runs
                    _register(client, experiment_id, run, run_ids[run.uid], own)


def _register(client: Any, experiment_id: str, run: Run, run_id: str, runs: Sequence[Run]) -> None:
    """A version of the registered model `<experiment>.<step>` for a trained model, with its scores as tags."""
    assert run.model is not None
    fingerprint = run.model["fingerprint"]
    name = f"{run.experiment}.{run.tags.get('step', run.name)}".replace("/", ".")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"models of {run.experiment}, each with its scores")
    versions = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("fingerprint") == fingerprint]
    scored = [r for r in runs if fingerprint in r.scored_models]
    scores = {p.metric: f"{p.value:.6g}" for r in scored for p in r.results}
    tags = {"fingerprint": fingerprint, "path": run.model["path"], **scores}
    if not versions:
        logged = client.search_logged_models([experiment_id], filter_string=f"tags.fingerprint = '{fingerprint}'")
        if not logged:
            return
        client.create_model_version(name, logged[0].artifact_location, run_id, tags=tags, description=run.name,
                                    model_id=logged[0].model_id)  # fmt: skip
        return
    for key, value in tags.items():
        if versions[0].tags.get(key) != value:
            client.set_model_version_tag(name, versions[0].version, key, value)


def digest_of(value: Any) -> str:
    """sha256 (hex) of plain data."""
    return hashlib.sha256(json.dumps(value, default=dict).encode()).hexdigest()


def short_uid(uid: str) -> str:
    """A run's uid in a form that needs no quoting in a filter."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
