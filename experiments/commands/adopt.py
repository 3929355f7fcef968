"""`maskgit adopt PATH STEP`: registers work done elsewhere as a finished step."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.commands._request import config_dirs, request_arguments
from maskgit_core.errors import ArtifactError, ConfigError

HELP = "register work done elsewhere as a finished step"
EPILOG = """\
examples:
  maskgit adopt old_store/train/prenorm-1a2b3c4d train experiment=quickstart   a step of another store
  maskgit adopt my_tokens/ cache_tokens experiment=NAME --fact codebook_size=1024 --fact grid='[16, 16]'
The files are linked (or copied to another disk) into the step's folder; its manifest says where they came from.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Path, step, overrides, `--fact`."""
    parser.add_argument("path", type=Path, help="a folder of output files, or a finished step's folder")
    parser.add_argument("step", help="the step of the experiment that it stands for")
    request_arguments(parser)
    parser.add_argument("--fact", action="append", default=[], metavar="KEY=JSON", help="a fact for downstream steps")


def main(args: argparse.Namespace) -> int:
    """Makes the step's folder with the adopted files and marks it done."""
    from experiments.launching.prepare import link_experiment, write_launch, write_request
    from experiments.planning.graph import store_of
    from experiments.planning.pipeline import build
    from experiments.planning.plan import Planner
    from experiments.store.records import new_uid
    from experiments.store.step_folder import Store
    from maskgit_core.files import read_json

    source = args.path.expanduser().absolute()
    if not source.is_dir():
        raise ConfigError(f"{args.path}: is not a folder; adopt a folder of output files")
    graph = build(args.overrides, config_dirs(args))
    planned = [s for s in Planner(graph).plan() if args.step in (s.node.name, s.node.request.name)]
    if len(planned) != 1:
        names = ", ".join(n.name for n in graph.nodes.values())
        raise ConfigError(f"{args.step}: matches {len(planned)} steps; name one of [{names[:400]}]")
    step = planned[0]
    if step.action in ("done", "running"):
        raise ArtifactError(f"{step.node.folder}: the step is {step.action} already; nothing was adopted")
    missing = [n for n in step.node.upstream if read_json(graph.nodes[n].folder / "manifest.json") is None]
    if missing:
        raise ArtifactError(
            f"{graph.nodes[missing[0]].name}: is not finished; finish or adopt what {args.step} needs first"
        )
    store: Store = store_of(graph)
    store.check_writable()
    write_request(step.node, graph, store)
    write_launch(step.node, graph, new_uid())
    _adopt(source, step.node, graph, _facts(args.fact))
    link_experiment(graph, store)
    print(f"{step.node.name}: adopted {source} as {step.node.folder}")
    return 0


def _facts(given: list[str]) -> dict[str, Any]:
    facts = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            facts[key] = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(f"--fact {text}: write KEY=JSON, as in grid='[16, 16]'") from None
        if not equals:
            raise ConfigError(f"--fact {text}: write KEY=JSON")
    return facts


def _adopt(source: Path, node: Any, graph: Any, facts: dict[str, Any]) -> None:
    from experiments.store.step_folder import check_outputs, finish, list_outputs, manifest_digest, new_attempt
    from maskgit_core.files import link_or_copy, read_json, write_json

    manifest = read_json(source / "manifest.json")
    known: dict[str, Any] = {}
    if manifest is not None and "outputs" in manifest and "kind" in manifest:
        if manifest["kind"] != node.request.kind:
            raise ArtifactError(f"{source}: holds {manifest['kind']}; {node.name} makes {node.request.kind}")
        check_outputs(source, manifest)
        known = manifest
        source = source / "attempts" / f"{int(manifest['attempt']):04d}" / "files"
    number = new_attempt(node.folder)
    files = node.folder / "attempts" / f"{number:04d}" / "files"
    shutil.copytree(source, files, copy_function=lambda a, b: link_or_copy(Path(a), Path(b)))
    outputs = list_outputs(files)
    facts = {**known.get("facts", {}), **facts}
    inputs = {p: (read_json(graph.nodes[p].folder / "manifest.json") or {}).get("digest") for p in node.upstream}
    made = {
        "format": 1,
        "fingerprint": node.fingerprint,
        "kind": node.request.kind,
        "attempt": number,
        "outputs": outputs,
        "facts": facts,
        "headline": known.get("headline"),
        "shown": known.get("shown", []),
        "datasets": known.get("datasets", []),
        "inputs": inputs,
        "digest": manifest_digest(outputs, facts),
        "time": time.time(),
        "seconds": 0.0,
        "adopted_from": str(source),
    }
    write_json(
        node.folder / "attempts" / f"{number:04d}" / "end.json", {"state": "done", "reason": f"adopted {source}"}
    )
    finish(node.folder, number, made)
