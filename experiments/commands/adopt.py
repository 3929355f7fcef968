"""`maskgit adopt PATH STEP`: registers work done elsewhere as a finished step."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

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
    from experiments.store.documents import Manifest
    from experiments.store.find import pick
    from experiments.store.records import new_uid
    from experiments.store.step_folder import Store

    source = args.path.expanduser().absolute()
    if not source.is_dir():
        raise ConfigError(f"{args.path}: is not a folder; adopt a folder of output files")
    graph = build(args.overrides, config_dirs(args))
    planned = pick(
        args.step, Planner(graph).plan(), lambda s: (s.node.name, s.node.request.name), lambda s: s.node.fingerprint
    )
    if len(planned) != 1:
        names = ", ".join(n.name for n in graph.nodes.values())
        raise ConfigError(f"{args.step}: matches {len(planned)} steps; name one of [{names[:400]}]")
    step = planned[0]
    if step.action in ("done", "running"):
        raise ArtifactError(f"{step.node.folder}: the step is {step.action} already; nothing was adopted")
    inputs = {}
    for upstream in step.node.upstream:
        made = Manifest.read(graph.nodes[upstream].folder)
        if made is None:
            name = graph.nodes[upstream].name
            raise ArtifactError(f"{name}: is not finished; finish or adopt what {args.step} needs first")
        inputs[upstream] = made.digest
    store: Store = store_of(graph)
    store.check_writable()
    write_request(step.node, graph, store)
    write_launch(step.node, graph, new_uid())
    _adopt(source, step.node.folder, inputs, _facts(args.fact))
    link_experiment(graph, store)
    print(f"{step.node.name}: adopted {source} as {step.node.folder}")
    return 0


def _facts(given: list[str]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            facts[key] = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(f"--fact {text}: write KEY=JSON, as in grid='[16, 16]'") from None
        if not equals:
            raise ConfigError(f"--fact {text}: write KEY=JSON")
    return facts


def _adopt(source: Path, folder: Path, inputs: Mapping[str, str], facts: Mapping[str, object]) -> None:
    from experiments.store.documents import End, Manifest, Notes, Request
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import check_outputs, finish, new_attempt
    from maskgit_core.files import link_or_copy

    request, notes = Request.needed(folder), Notes()
    if StepFolder(source).request.is_file() and (manifest := Manifest.read(source)) is not None:
        if manifest.kind != request.kind:
            raise ArtifactError(f"{source}: holds {manifest.kind}; {request.stage} makes {request.kind}")
        check_outputs(source, manifest)
        notes = manifest.notes
        source = StepFolder(source).attempt(manifest.attempt).files
    attempt = StepFolder(folder).attempt(new_attempt(folder))
    shutil.copytree(source, attempt.files, copy_function=lambda a, b: link_or_copy(Path(a), Path(b)))
    notes = replace(notes, facts={**notes.facts, **facts})
    made = Manifest.of_files(request, attempt.number, attempt.files, notes, inputs, adopted_from=str(source))
    End(state="done", reason=f"adopted {source}", time=made.time).write(attempt.path)
    finish(folder, made)
