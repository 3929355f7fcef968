"""`maskgit plan`: what would run and why; submits nothing, writes nothing."""

from __future__ import annotations

import argparse
import json

from experiments.commands._request import config_dirs, part_arguments, part_of, request_arguments
from experiments.planning.dot import dot, mermaid
from experiments.planning.plan_table import print_plan

HELP = "what would run, and why; submits nothing"
EPILOG = """\
examples:
  maskgit plan experiment=quickstart
  maskgit plan experiment=quickstart train.num_train_steps=5000
  maskgit plan experiment=quickstart train.lr=1e-4,3e-4 model.num_layers=4,8   the grid of a sweep
  maskgit plan experiment=quickstart --until cache_tokens                     a part of the DAG
  maskgit plan experiment=quickstart launcher=slurm                           with arrays, resources and GPU-hours
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides, parts of the DAG, `--redo`, `--sbatch`, `--dot`, `--mermaid`, `--json`."""
    request_arguments(parser)
    part_arguments(parser)
    parser.add_argument("--redo", action="append", default=[], metavar="STEP", help="as if this step had to run again")
    parser.add_argument("--reuse-old-code", action="store_true", help="keep a sweep's points that older code made")
    parser.add_argument("--sbatch", action="store_true", help="print the job scripts (launcher=slurm)")
    parser.add_argument("--dot", action="store_true", help="the DAG for Graphviz: maskgit plan ... --dot | dot -Tsvg")
    parser.add_argument("--mermaid", action="store_true", help="the DAG as a mermaid flowchart, for Markdown")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def main(args: argparse.Namespace) -> int:
    """Prints the plan."""
    from experiments.launching.bill import bill, queue_estimate, scripts
    from experiments.launching.calls import load_launcher
    from experiments.launching.submission import plan
    from experiments.planning.absent_weights import with_absent_weights
    from experiments.planning.pipeline import build

    graph = build(args.overrides, config_dirs(args), check=lambda settings: load_launcher(settings["launcher"]),
                  part=part_of(args), allow_absent=True)  # fmt: skip
    planned = with_absent_weights(plan(graph, args.redo, reuse_old_code=args.reuse_old_code), graph.absent)
    if args.json:
        rows = [
            {
                "name": s.node.name,
                "stage": s.node.request.stage,
                "fingerprint": s.node.fingerprint if s.identified else None,
                "folder": str(s.node.folder) if s.identified else None,
                "action": s.action,
                "reason": s.reason,
                "params": dict(s.node.params),
                "warnings": list(s.warnings),
            }
            for s in planned
        ]
        print(json.dumps({"experiment": graph.experiment, "steps": rows}, indent=2))
        return 0
    launcher = load_launcher(graph.settings["launcher"])
    if args.dot or args.mermaid:
        print(*(mermaid if args.mermaid else dot)(planned), sep="\n")
        return 0
    if args.sbatch:
        print(*scripts(graph, planned, launcher), sep="\n")
        return 0
    if len(graph.items) > 1:
        from experiments.config.sweep import label

        print(f"sweep of {len(graph.items)} points: " + "; ".join(label(i.params) for i in graph.items[:8])
              + (" ..." if len(graph.items) > 8 else ""))  # fmt: skip
    print(*graph.notes, sep="\n", end="\n" if graph.notes else "")
    print_plan(planned)
    if launcher.is_detached:
        print(*bill(graph, planned), *queue_estimate(graph, planned, launcher), sep="\n")
    print(*graph.left_out, sep="\n", end="\n" if graph.left_out else "")
    return 0
