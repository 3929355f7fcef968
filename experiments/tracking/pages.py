"""Addresses of pages of MLflow."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from experiments.tracking.address import told
from experiments.tracking.embedded import embedded_lock
from experiments.tracking.mlflow_store import MlflowStore
from experiments.tracking.presentation import deep_link
from maskgit_core.errors import unknown_name


def runs_page(store: Path, uri: str, base: str, experiment: str | None) -> str | None:
    """The address of an experiment's runs (of the one with the newest run where none is named); None without any."""
    with embedded_lock(store) if uri.startswith("sqlite:") else nullcontext(), told(uri):
        client = MlflowStore(store, uri).client
        ids = {e.name: e.experiment_id for e in client.search_experiments() if e.name != "Default"}
        if experiment is None and ids:
            newest = client.search_runs(list(ids.values()), order_by=["attributes.start_time DESC"], max_results=1)
            return deep_link(base, newest[0].info.experiment_id) if newest else None
    if experiment is not None and experiment not in ids:
        raise unknown_name("experiment", experiment, ids, "experiment in MLflow")
    return deep_link(base, ids[experiment]) if experiment else None
