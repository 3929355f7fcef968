"""Documents: every relative link leads somewhere, and no document names a file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """`experiments/...py`, `maskgit_core/...py` and the like in running text; names with capitals are placeholders."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`((?:experiments|maskgit_core|launchers|conf|tools|tests)/[a-z0-9_/.]+)`", text):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), f"{page.name} names {name}"


def test_one_spelling_and_no_docstring_that_opens_with_what() -> None:
    """`dataset` is one word everywhere, as in the configs."""
    folders = ("experiments", "maskgit_core", "launchers", "tools")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in [*sources, *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        text = path.read_text()
        assert not re.search(r"\bdata[ -]sets?\b", text, re.IGNORECASE), path
        assert not re.search(r'"""What ', text), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    """Every `maskgit VERB --option` of a code block is one that the command line takes."""
    from experiments.commands import command_names, parser_of

    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = line.split(" #")[0].removeprefix("$ ").split()
        if len(words) < 2 or words[0] != "maskgit" or words[1].startswith("-") or words[1] == "COMMAND":
            continue
        assert words[1] in command_names(), f"{page.name}: {line}"
        known = {option for action in parser_of(words[1])._actions for option in action.option_strings}
        typed = {re.split(r"[=\]]", word.lstrip("["))[0] for word in words[2:] if word.lstrip("[").startswith("--")}
        if words[1] not in ("shards", "weights"):  # these have verbs of their own
            assert typed <= known, f"{page.name}: {line}: {typed - known}"
