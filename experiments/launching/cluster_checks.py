"""Checks of `maskgit doctor launcher=slurm` beyond this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.launching.submission import submission_lock
from experiments.planning.graph import Graph, store_of
from experiments.store.frozen_code import freeze
from experiments.store.records import new_uid
from maskgit_core.errors import LaunchError

Check = tuple[str, Callable[[], str]]
PROBE_WAIT_S = 120.0
IMPORTS = ("torch", "torchvision", "numpy", "accelerate", "webdataset", "torchmetrics", "experiments.running.job")


def checks(graph: Graph, launcher: object) -> list[Check]:
    """Partition, limits, GPUs, memory; the queue and its accounting; and a small job on a node."""
    return [
        ("cluster", lambda: requests(graph, launcher)),
        ("queue", _queue),
        ("job", lambda: job(graph, launcher, store_of(graph).root)),
    ]


def requests(graph: Graph, launcher: Any) -> str:
    """Compares every step's resources with the cluster, whether or not the step is done already."""
    from experiments.launching.calls import calls
    from experiments.planning.plan import PlannedStep
    from experiments.store.step_folder import Status

    planned = [PlannedStep(node, "run", "", Status("absent")) for node in graph.nodes.values()]
    told = launcher.check(calls(graph, planned, "doctor"))
    return f"{'; '.join(told)}; what the steps ask for can be had"


def _queue() -> str:
    from launchers.cluster.queue import snapshot, usage

    known = snapshot()
    if known is None:
        raise LaunchError("squeue: gives no answer; status will show files only")
    live = sum(entry.is_live for entry in known.values())
    accounting = "answers" if usage(["1"]) is not None else "does not answer (status and failures go without it)"
    return f"{live} jobs in it; accounting {accounting}"


def job(graph: Graph, launcher: Any, store: Path) -> str:
    """Submits a job of a minute that imports what stages import and writes to the store.

    Raises:
        LaunchError: the job did not work; says what it met.
    """
    from launchers.calls import Call, LaunchContext, Resources
    from launchers.cluster.queue import call_tool
    from maskgit_core.files import read_json

    gpus = int(any((node.request.resources.get("gpus_per_task") or 0) > 0 for node in graph.nodes.values()))
    folder = store / "slurm" / f"doctor-{new_uid()}"
    probe = Call(
        key="probe",
        name="doctor",
        target="launchers.probe:probe",
        args=[str(folder), list(IMPORTS), gpus],
        log=folder / "log.txt",
        group="doctor",
        resources=Resources(timeout_min=5, gpus_per_task=gpus),
    )
    with submission_lock(store):
        code = freeze(store, graph.settings.get("plugins") or ())
        (number,) = launcher.launch([probe], context=LaunchContext(folder, code))["probe"].jobs[:1]
    deadline = time.monotonic() + PROBE_WAIT_S
    while (note := read_json(folder / "probe.json")) is None:
        end = read_json(folder / "000" / "ends" / "0-0.json")
        if end is not None and end["code"] != 0:
            raise LaunchError(f"job {number}: {end['message']}; see {probe.log}")
        if time.monotonic() > deadline:
            call_tool(["scancel", number])
            return f"job {number} did not finish within {PROBE_WAIT_S:.0f} s and was taken back (see {folder})"
        time.sleep(0.5)
    if note["trouble"]:
        raise LaunchError(
            f"job {number} on {note['host']}: {note['trouble'][0]}; see launcher.python and launcher.setup"
        )
    more = f"; {note['gpu']}" if note["gpu"] else ""
    more += "" if note["scontrol"] else "; no scontrol on the node: use launcher.requeue=chain"
    return f"Python {note['python']} on {note['host']} imports what stages need and writes to the store{more}"
