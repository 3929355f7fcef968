"""The house's laws: imports point down, files and functions stay small, light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("maskgit_core", "experiments", "launchers", "tools")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
FLOOR_0 = ("errors", "hints", "rng", "masking", "guidance", "losses", "models", "samplers", "tokenizers")
FLOOR_3 = ("pipeline", "foresight", "plan", "sweep", "prepare", "find")
FLOOR_5 = (
    *("cli", "job", "sharing", "commands", "launching", "submission"),
    *("cluster_checks", "failing", "selection", "usage_report"),
)
FORBIDDEN_IN_CORE = ("hydra", "omegaconf", "submitit", "mlflow", "experiments", "launchers", "tools")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """Every module a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def floor(module: str) -> int | None:
    """The floor of one of our modules; None for what is not ours."""
    package, _, rest = module.partition(".")
    head = rest.split(".")[0]
    if package == "maskgit_core":
        return 0 if head in FLOOR_0 else 1
    if package == "experiments":
        return 3 if head in FLOOR_3 else 5 if head in FLOOR_5 else 2
    return {"launchers": 4, "tools": 5}.get(package)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    mine = floor(module_of(path))
    assert mine is not None
    package = module_of(path).partition(".")[0]
    for name in imports_of(path):
        theirs = floor(name)
        if package == "maskgit_core":
            assert name.partition(".")[0] not in FORBIDDEN_IN_CORE, f"{path.name} imports {name}"
            # weights and pixels are looked up by name from the ground floor; only whole floors are ordered
            continue
        if package == "launchers" and theirs is not None:
            assert name.startswith(("launchers", "maskgit_core.errors")) or name == "maskgit_core", f"imports {name}"
            continue
        if theirs is not None and "queue_hint" not in module_of(path):
            assert theirs <= mine, f"{module_of(path)} (floor {mine}) imports {name} (floor {theirs})"


def test_one_file_imports_mlflow_and_one_hydra() -> None:
    users: dict[str, set[str]] = {"mlflow": set(), "hydra": set(), "omegaconf": set()}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "tools"):
            continue
        for name in imports_of(path):
            if (head := name.partition(".")[0]) in users:
                users[head].add(module_of(path))
    assert users["mlflow"] == {"experiments.tracking"}
    assert users["hydra"] == users["omegaconf"] == {"experiments.config"}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path}: {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 60, f"{path}:{node.lineno} {node.name} has {size} lines"


def test_functions_are_mostly_short() -> None:
    sizes = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert sizes[int(0.95 * len(sizes))] <= 40


def test_no_vague_names() -> None:
    vague = {"utils", "helpers", "common", "manager", "handler", "util", "helper", "misc"}
    assert not [p for p in SOURCES if p.stem in vague]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plan", "experiment=quickstart"], ["status"], ["config", "experiment=quickstart"]],
    ids=" ".join,
)
def test_light_commands_load_neither_torch_nor_mlflow(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom experiments.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'mlflow', 'torchvision', 'pandas', 'scipy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'CODE', code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})  # fmt: skip
    assert done.stdout.splitlines()[-1] == "HEAVY [] CODE 0", done.stdout[-500:] + done.stderr[-2000:]


def test_the_project_names_no_place_of_one_machine() -> None:
    """No absolute path of a home or work folder in what is shipped."""
    for path in [*SOURCES, *(ROOT / "conf").rglob("*.yaml"), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for line in path.read_text(errors="replace").splitlines():
            assert not any(place in line for place in ("/work/", "/root/", "/home/")), f"{path}: {line[:100]}"
