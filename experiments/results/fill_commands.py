"""The command that fills a row of a table: that of its experiment's header, with what the row changes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.config.compose import CONF

#: Values in a command that stand for a path of the user's; docs/reproducing.md says what they are.
PLACEHOLDER = re.compile(r"=([A-Z][A-Z0-9]+|VIRTUAL_\w+\.npz|ImageNet_\w+\.pt)$")


def header_command(experiment: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The arguments of `# Command   maskgit run ...` in an experiment's header; empty where there is no such line."""
    for folder in (CONF, *config_dirs):
        path = Path(folder) / "experiment" / f"{experiment}.yaml"
        if path.is_file():
            match = re.search(r"^# Command +maskgit run (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            return shlex.split(match[1]) if match else []
    return []


def fill_arguments(
    experiment: str, overrides: Sequence[str], unset: Sequence[str] = (), config_dirs: Sequence[Path] = ()
) -> list[str]:
    """The arguments that fill a row.

    Args:
        experiment: of the row.
        overrides: what the row changes.
        unset: keys that the experiment leaves to the user.
        config_dirs: folders with experiments besides the shipped ones.

    Returns:
        `experiment=NAME`, what its header's command gives (but for the launcher), the overrides, and `KEY=...` for
        what is still left.
    """
    given = [
        word for word in header_command(experiment, config_dirs) if not word.startswith(("experiment=", "launcher="))
    ]
    changed = {word.partition("=")[0] for word in overrides}
    words = [f"experiment={experiment}", *(w for w in given if w.partition("=")[0] not in changed), *overrides]
    there = {word.partition("=")[0] for word in words}
    return [*words, *(f"{key}=..." for key in unset if key not in there)]


def placeholders(command: str) -> list[str]:
    """The values of a command that the user replaces by paths of their own."""
    return list(dict.fromkeys(m[1] for word in command.split() if (m := PLACEHOLDER.search(word))))
