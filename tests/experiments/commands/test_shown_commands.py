"""Every command that README and docs show is one that can be typed: parsed, and requests planned with their values.

`test_push_pull.py` runs those for real that read a finished run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from experiments.commands import command_names, parse_arguments
from experiments.commands._request import config_dirs
from experiments.config.points import plan_configs
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError, MaskgitError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REQUESTS = ("run", "plan", "config", "doctor")
#: What stands for something of the reader's own -> something there is.
PLACEHOLDERS = {
    "NAME/train": "quickstart/train", "NAME": "quickstart", "STEP": "quickstart/train", "RUN": "quickstart/train",
    "OWNER/quickstart": "me/garments", "centre_out": "halton", "mysite": "slurm",
    "ROW": "quickstart", "COLUMN": "fd", "A B ...": "a b",
}  # fmt: skip


def shown(page: Path) -> Iterator[str]:
    """The commands `maskgit ...` of a page's code blocks and of its running text."""
    text = page.read_text()
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            typed = re.sub(r"^(\$ )?([A-Z_]+=\S+ )*", "", line.strip()).split(" #")[0]
            if typed.startswith("maskgit "):
                verb, _, rest = typed.removeprefix("maskgit ").partition(" ")
                said = re.split(r"\s{4,}", rest.strip())[0]  # what follows wide space is the form's explanation
                yield f"{verb} {said}".strip()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (re.sub(r"\s+", " ", found) for found in re.findall(r"`maskgit ([a-z][^`]*)`", prose))


def typed(command: str, pictures: Path) -> list[str] | None:
    """The words of a command with things that exist in place of placeholders; None for a list of verbs or a form."""
    if "·" in command or re.match(r"\S+ (\.\.\.|…)", command) or command.startswith("COMMAND"):
        return None
    for name, real in PLACEHOLDERS.items():
        command = re.sub(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_.])", real, command)
    command = re.sub(r"(?<![A-Za-z_])(PATH|FOLDER|DIR|FILE)(?![A-Za-z_])", str(pictures), command)
    command = re.sub(r"(?<=\s)(\w+)(\|\w+)+", r"\1", command)  # of alternatives the first
    words = shlex.split(re.sub(r"\[[^]]*\]|\.\.\.$|…", "", command) if " [" in command else command)
    return [word for word in words if word != "..."]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(8):
        Image.fromarray(np.full((64, 64, 3), 30 * n, np.uint8)).save(folder / f"{n}.png")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_typed_as_they_are_shown(
    page: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab" / "conf").mkdir(parents=True)
    for command in dict.fromkeys(shown(page)):
        words = typed(command, pictures)
        if words is None:
            continue
        assert words[0] in command_names(), f"{page.name}: maskgit {command}"
        if len(words) == 1:  # a verb that the text speaks of
            continue
        try:
            args = parse_arguments(words[0], words[1:])
        except SystemExit:
            pytest.fail(f"{page.name}: maskgit {command}: the command line does not take it")
        if words[0] in REQUESTS and "garments" not in command and args.overrides:
            planned(page, command, args, tmp_path)


def planned(page: Path, command: str, args: object, store: Path) -> None:
    """Plans a request; data and weights that are not on this machine are no fault of the page."""
    overrides = [f"paths.store={store}/none", *args.overrides]  # type: ignore[attr-defined]
    try:
        plan_configs(overrides, config_dirs(args))  # type: ignore[arg-type]
        build(overrides, config_dirs(args), allow_absent=True)  # type: ignore[arg-type]
    except ConfigError as error:
        pytest.fail(f"{page.name}: maskgit {command}: {error}")
    except MaskgitError:
        pass


def test_make_targets_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_modules_that_are_shown_can_be_started() -> None:
    """`python -m tools.NAME` of any page or help text is a file or a package with a `__main__.py`."""
    for page in [*PAGES, ROOT / "Makefile"]:
        for module in re.findall(r"python -m (tools[a-z_.]*[a-z_])", page.read_text()):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: {module}"


def test_the_first_hour_types_what_the_readme_shows() -> None:
    from tools.first_hour import STEPS

    readme = re.sub(r" +", " ", (ROOT / "README.md").read_text())
    for step in STEPS:
        assert re.sub(r" +", " ", step.command) in readme, step.command
