"""`maskgit config`: the composed config."""

from __future__ import annotations

import argparse

from experiments.commands._request import config_dirs, request_arguments

HELP = "the composed config of an experiment"
EPILOG = """\
examples:
  maskgit config experiment=quickstart
  maskgit config experiment=quickstart --checked       with every default filled in, step by step
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides and `--checked`."""
    request_arguments(parser)
    parser.add_argument("--checked", action="store_true", help="per step, with every default filled in")


def main(args: argparse.Namespace) -> int:
    """Prints YAML."""
    from experiments.config.checker import Checker
    from experiments.config.compose import groups, to_yaml
    from experiments.config.points import plan_configs
    from experiments.config.settings import without_password

    dirs = config_dirs(args)
    points, resolved = plan_configs(args.overrides, dirs)
    checker = Checker(resolved[0].get("plugins") or (), groups(dirs))
    for point, config in zip(points, resolved, strict=True):
        requests = checker.steps(config)
        if len(points) > 1:
            print(f"--- # {point}")
        if args.checked:
            shown = {r.name: {**r.config, **r.content, **r.weights} for r in requests.values()}
            print(without_password(to_yaml(shown)), end="")
        else:
            print(without_password(to_yaml(config)), end="")
    return 0
