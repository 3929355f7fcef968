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
