"""`maskgit doctor`: looks at everything a run will need before hours are lost."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands._request import config_dirs, request_arguments
from experiments.console import coloured, size
from maskgit_core.errors import MaskgitError

if TYPE_CHECKING:
    from experiments.planning.graph import Graph
    from experiments.store.step_folder import Store

HELP = "check packages, store, data, weights, tracking and the cluster"
EPILOG = """\
examples:
  maskgit doctor                                         this machine
  maskgit doctor experiment=quickstart                   and everything this experiment needs
  maskgit doctor experiment=NAME launcher=slurm          and the cluster
"""
NEEDED = (
    "torch",
    "torchvision",
    "hydra-core",
    "submitit",
    "mlflow",
    "accelerate",
    "einops",
    "webdataset",
    "torchmetrics",
    "huggingface_hub",
    "safetensors",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides."""
    request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Runs every check, prints a line for each, returns 1 where one failed."""
    from experiments.store.upkeep.access import access

    checks: list[tuple[str, Callable[[], str]]] = [("python", _python), ("packages", _packages), ("gpu", _gpu)]
    if args.overrides:
        dirs = config_dirs(args)
        from experiments.planning.graph import store_of
        from experiments.planning.pipeline import build

        graph = build(args.overrides, dirs)
        checks.append(
            ("experiment", lambda: f"{graph.experiment}: {len(graph.nodes)} steps, config and data are in order")
        )
        checks.append(("store", lambda: _store(store_of(graph))))
        checks.append(("access", lambda: access(store_of(graph).root)))
        checks.append(("tracking", lambda: _tracking(graph, store_of(graph).root)))
        checks += _launcher_checks(graph)
    else:
        from experiments.store.find import default_store
        from experiments.store.step_folder import Store

        checks.append(("store", lambda: _store(Store(default_store()))))
        checks.append(("access", lambda: access(default_store())))
    failed = 0
    for name, check in checks:
        try:
            print(coloured(f"  ok    {name}: {check()}", "green"))
        except MaskgitError as error:
            failed += 1
            print(coloured(f"  FAIL  {name}: {error}", "red"))
    print("all checks passed" if not failed else f"{failed} of {len(checks)} checks failed")
    return 1 if failed else 0


def _python() -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _packages() -> str:
    missing = []
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise MaskgitError(f"missing {', '.join(missing)}; run `make install` or `pip install -e .`")
    return f"torch {version('torch')}, mlflow {version('mlflow')}, submitit {version('submitit')}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none visible (everything runs on the CPU)"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _store(store: Store) -> str:
    store.check_writable()
    free = shutil.disk_usage(store.root).free
    if free < 1_000_000_000:
        raise MaskgitError(f"{store.root}: only {size(free)} free; free some space or set paths.store")
    return f"{store.root} is writable, {size(free)} free"


def _tracking(graph: Graph, root: Path) -> str:
    uri = (graph.settings.get("tracking") or {}).get("uri")
    if uri is None:
        return f"embedded SQLite at {root / 'mlflow.db'}"
    from experiments.tracking.address import knock

    knock(uri)
    return f"{uri} answers"


def _launcher_checks(graph: Graph) -> list[tuple[str, Callable[[], str]]]:
    from experiments.launching.calls import load_launcher

    launcher = load_launcher(graph.settings.get("launcher"))
    if not launcher.is_detached:
        return [("launcher", lambda: type(launcher).__module__.rpartition(".")[2])]
    from experiments.launching.cluster_checks import checks

    return checks(graph, launcher)
