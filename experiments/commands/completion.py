"""`maskgit completion`: a script for the shell that completes commands, experiments, groups and keys."""

from __future__ import annotations

import argparse

HELP = 'shell completion: eval "$(maskgit completion bash)"'
EPILOG = """\
examples:
  eval "$(maskgit completion bash)"      add this line to ~/.bashrc
  eval "$(maskgit completion zsh)"       or to ~/.zshrc
"""
BASH = r"""
_maskgit() {
  local line="${COMP_LINE:0:$COMP_POINT}" word
  COMP_WORDBREAKS="${COMP_WORDBREAKS//=}"
  word="${line##* }"
  COMPREPLY=( $(compgen -W "$(maskgit completion words "$line" 2>/dev/null)" -- "$word") )
  [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace
}
complete -F _maskgit maskgit
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The shell, or `words LINE` (what the scripts call)."""
    parser.add_argument("shell", choices=["bash", "zsh", "words"], help="bash or zsh")
    parser.add_argument("line", nargs="?", default="", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Prints the script, or the candidates for the word at the end of a line."""
    if args.shell == "words":
        print("\n".join(candidates(args.line)))
    else:
        print("autoload -U +X bashcompinit && bashcompinit\n" * (args.shell == "zsh") + BASH)
    return 0


def candidates(line: str) -> list[str]:
    """What may stand at the end of `line`."""
    from experiments.commands import command_names
    from experiments.config.compose import group_names, groups

    words = line.split(" ")
    current = words[-1]
    if len(words) <= 2:
        return command_names()
    key, equals, _ = current.partition("=")
    if equals:
        return [f"{key}={name}" for name in group_names(key)] if key in groups() else []
    chosen = [w for w in words if w.startswith("experiment=")]
    return [f"{g}=" for g in ["experiment", *groups()]] + (_keys(chosen[-1]) if chosen else [])


def _keys(experiment: str) -> list[str]:
    """Every key that the steps of the chosen experiment take."""
    from experiments.config.checker import Door
    from experiments.config.compose import groups
    from experiments.config.points import plan_configs
    from maskgit_core.errors import MaskgitError

    try:
        _, resolved = plan_configs([experiment])
        requests = Door((), groups()).steps(resolved[0])
    except MaskgitError:
        return []
    keys = []
    for request in requests.values():
        for name in (*request.config, *request.execution):
            keys.append(f"{request.stage}.{name}=")
    return keys
