"""`maskgit completion`: completes commands, experiments, groups, keys, steps and names in bash and zsh."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from experiments.commands import command_names, parser_of

if TYPE_CHECKING:
    from experiments.config.checker import StepRequest

HELP = 'shell completion: eval "$(maskgit completion bash)"'
EPILOG = """\
examples:
  eval "$(maskgit completion bash)"      add this line to ~/.bashrc
  eval "$(maskgit completion zsh)"       or to ~/.zshrc
"""
ZSH_START = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }\n"
#: Arguments that name something in the store, by (verb, argument).
STEPS = {("logs", "step"), ("cancel", "what"), ("retry", "what"), ("reproduce", "name"), ("compare", "overrides")}
EXPERIMENTS = {("status", "experiment"), ("report", "experiment"), ("ui", "experiment"), ("failures", "experiment")}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=["bash", "zsh"], help="which shell")


def main(args: argparse.Namespace) -> int:
    """Prints the script that the shell evaluates."""
    from argcomplete.shell_integration import shellcode

    print(ZSH_START * (args.shell == "zsh") + shellcode(["maskgit"], shell=args.shell))
    return 0


def answer(line: str) -> None:
    """Answers a shell that asks what may come next in `line`, and ends the process."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="maskgit")
    verbs = parser.add_subparsers()
    typed = line.split()[1:2]
    for name in command_names():
        if [name] == typed:
            known = parser_of(name)
            verbs.add_parser(name, parents=[known], add_help=False)
        else:
            verbs.add_parser(name)
    for action in _arguments(parser):
        if (complete := _completer(typed[0] if typed else "", action.dest, line)) is not None:
            action.completer = complete  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _arguments(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in {id(p): p for p in action.choices.values()}.values():
                yield from _arguments(inner)
        else:
            yield action


def _completer(verb: str, argument: str, line: str) -> Callable[..., list[str]] | None:
    if (verb, argument) in STEPS | EXPERIMENTS:
        return lambda prefix, **_: in_store(with_steps=(verb, argument) in STEPS)
    if (verb, argument) in (("run", "redo"), ("plan", "redo")):
        return lambda prefix, **_: steps_of(_experiment(line))
    if argument == "overrides":
        return lambda prefix, **_: request_words(prefix, _experiment(line))
    if (verb, argument) == ("table", "name"):
        return lambda prefix, **_: tables()
    if verb == "weights" and argument in ("name", "names"):
        return lambda prefix, **_: weights()
    return None


def _experiment(line: str) -> str | None:
    """The experiment that a line chooses."""
    from experiments.config.compose import group_names

    words, names = line.split(" "), group_names("experiment")
    chosen = [word for word in words if word.startswith("experiment=")]
    chosen += [f"experiment={word}" for word in words[:-1] if word in names]
    return chosen[-1] if chosen else None


def request_words(word: str, experiment: str | None) -> list[str]:
    """Choices for `group=`, else groups and the keys of the chosen experiment's steps, each with its `=`."""
    from experiments.config.compose import group_names, groups

    key, equals, _ = word.partition("=")
    if equals:
        return [f"{key}={name}" for name in group_names(key)] if key in ("experiment", *groups()) else []
    names = [] if experiment else group_names("experiment")
    return names + [f"{name}=" for name in ["experiment", *groups()]] + [f"{key}=" for key in keys_of(experiment)]


def keys_of(experiment: str | None) -> list[str]:
    """Every key that the steps of an experiment take: `train.lr`, `sampler.num_steps`, ..."""
    from collections.abc import Mapping

    keys: set[str] = set()
    for request in _requests(experiment):
        for name, value in {**request.config, **request.execution}.items():
            if isinstance(value, Mapping):
                keys |= {f"{name}.{inner}" for inner in value if inner != "name"}
            keys.add(f"{request.stage}.{name}")
    return sorted(keys)


def steps_of(experiment: str | None) -> list[str]:
    """The names of an experiment's steps."""
    return [request.name for request in _requests(experiment)]


def _requests(experiment: str | None) -> list[StepRequest]:
    from experiments.config.checker import Checker
    from experiments.config.compose import groups
    from experiments.config.points import plan_configs
    from maskgit_core.errors import MaskgitError

    if experiment is None:
        return []
    try:
        _, resolved = plan_configs([experiment])
        return list(Checker((), groups()).steps(resolved[0]).values())
    except MaskgitError:
        return []


def in_store(with_steps: bool) -> list[str]:
    """Experiments that were run in the store, and their steps as `experiment/step`."""
    from experiments.store.find import default_store
    from experiments.store.records import latest_records

    names: list[str] = []
    for record in latest_records(default_store(), warn=lambda text: None):
        names.append(record.experiment)
        if with_steps:
            names += [f"{record.experiment}/{step.name}" for step in record.steps]
    return names


def tables() -> list[str]:
    """The names of the tables that ship."""
    from experiments.config.compose import CONF

    return sorted(path.stem for path in (CONF / "table").glob("*.yaml"))


def weights() -> list[str]:
    """The names of published weights."""
    from maskgit_core.weights.registry import registry

    return sorted(registry())
