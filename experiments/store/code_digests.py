"""Digests of the code that decides results, so that a finished step can tell whether its code has changed since.

A digest is taken of what a file *does*: its syntax tree without docstrings, comments, layout and import statements. A
file that only moved, or whose prose was edited, has the digest it had, under any name. Records made before this digest
existed hold the sha256 of whole files; `earlier_code.json` maps those of releases whose results are the same to the
digests of the files that do their work now (`python -m tools.earlier_code` renews it).
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

#: Packages and modules whose code decides results; a request's plugins are added.
SCIENCE = ("maskgit_core", "experiments.stages", "experiments.training", "experiments.evaluation",
           "experiments.running.components")  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
GONE = "0" * 64
EARLIER = Path(__file__).with_name("earlier_code.json")


@cache
def file_digest(path: str) -> str:
    """sha256 (hex) of a source file, once per process."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@cache
def code_digest(path: str) -> str:
    """sha256 (hex) of what a Python file does: its syntax tree less docstrings and imports; once per process.

    Of a file that is no Python just now (somebody is editing it), that of its bytes.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return file_digest(path)
    return hashlib.sha256(json.dumps(_plain(tree)).encode()).hexdigest()


def _plain(value: object) -> object:
    """A syntax tree as lists; absent fields are left out, since newer versions of Python add such fields."""
    if isinstance(value, list):
        return [_plain(part) for part in value if not isinstance(part, ast.Import | ast.ImportFrom)]
    if not isinstance(value, ast.AST):
        return value if isinstance(value, str | int | bool | None) else repr(value)
    fields = {name: part for name, part in ast.iter_fields(value) if part not in (None, [])}
    if isinstance(value, _DOCUMENTED) and ast.get_docstring(value, clean=False) is not None:
        fields["body"] = value.body[1:]
    return [type(value).__name__, *([name, _plain(part)] for name, part in fields.items())]


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def loaded_science(plugins: Iterable[str] = ()) -> dict[str, dict[str, str]]:
    """The loaded modules that decide results: `{name: {"sha256": of the file, "code": of what it does}}`.

    A file that went away while the step ran (another branch was checked out) has `GONE` for both: no reason to lose
    hours of work at their end.
    """
    science = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.startswith((*SCIENCE, *plugins)) and path.endswith(".py"):
            try:
                science[name] = {"sha256": file_digest(path), "code": code_digest(path)}
            except FileNotFoundError:
                science[name] = {"sha256": GONE, "code": GONE}
    return dict(sorted(science.items()))


def unlike_code(records: Iterable[Mapping[str, str | Mapping[str, str]]]) -> list[str]:
    """Modules of which records' `science_files` name more than one version."""
    versions: dict[str, set[str]] = {}
    for science in records:
        for name, known in science.items():
            versions.setdefault(name, set()).add(known if isinstance(known, str) else known["code"])
    return sorted(name for name, digests in versions.items() if len(digests) > 1)


class CodeNow:
    """The code as it is now, compared with what records say; each file is looked at once."""

    def __init__(self, source_of: Callable[[str], Path | None]) -> None:
        """`source_of` gives the file of a dotted module, or None."""
        self._source_of = cache(source_of)
        self._everywhere: set[str] | None = None
        self._earlier: Mapping[str, list[str]] | None = None

    def changed(self, science: Mapping[str, str | Mapping[str, str]]) -> list[str]:
        """The modules of a record's `science_files` whose code has changed since, under any name."""
        return [name for name, known in science.items() if not self._is_known(name, known)]

    def _is_known(self, name: str, known: str | Mapping[str, str]) -> bool:
        whole = known if isinstance(known, str) else known["sha256"]
        path = self._source_of(name) or self._source_of(f"{name}.__init__")
        if path is not None and file_digest(str(path)) == whole:
            return True
        wanted = self._of_earlier(whole) if isinstance(known, str) else [known["code"]]
        if wanted is None:
            return False
        if path is not None and wanted == [code_digest(str(path))]:
            return True
        return set(wanted) <= self._all()

    def _of_earlier(self, sha256: str) -> list[str] | None:
        if self._earlier is None:
            self._earlier = json.loads(EARLIER.read_text())
        assert self._earlier is not None
        return self._earlier.get(sha256)

    def _all(self) -> set[str]:
        if self._everywhere is None:
            self._everywhere = {code_digest(str(path)) for path in science_paths()}
        return self._everywhere


def science_paths() -> list[Path]:
    """Every file of this project that may decide results."""
    places = [ROOT.joinpath(*name.split(".")) for name in SCIENCE]
    return sorted(
        p for place in places for p in (place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")])
    )
