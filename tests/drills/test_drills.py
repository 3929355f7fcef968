"""The attacks of `tools/fuzz` and `tools/mutated_requests`: a tenth by default, all of them in `make drills`.

Each is a program with a seed and a count that prints every wrong outcome and ends with 1 where there was one; many
mutations share one process. Their last full counts are in `docs/drills_solid.txt`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT

from experiments.planning import toys
from maskgit_core.errors import DataError
from maskgit_core.images.tar_index import Member, read_member
from tools import mutated_requests
from tools.fuzz import hostile_inputs, store_files

#: Attack -> its arguments in full.
FULL = {
    "kills": ("--count", "100"),
    "interrupts": ("--count", "100"),
    "faults": ("--count", "100"),
    "crowd": ("--count", "32", "--rounds", "3"),
    "users": (),
}
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="the failing disk is a C library: needs gcc")
needs_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root (with setpriv) can be two users"
)


def drill(name: str, *arguments: str) -> None:
    """Runs an attack as a program of its own, which forks the commands it attacks."""
    call = [sys.executable, "-W", "ignore", "-m", f"tools.fuzz.{name}", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)


def test_kills():
    drill("kills", "--count", "10", "--seed", "11")


@needs_compiler
def test_faults():
    drill("faults", "--count", "10", "--kinds", "6", "--seed", "11")


def test_crowd():
    drill("crowd", "--count", "10", "--rounds", "1", "--seed", "11")


@needs_root
def test_users():
    drill("users", "--umask", "077", "--turns", "4")


@pytest.mark.slow
@needs_root
def test_users_of_a_store_that_is_not_shared():
    drill("users", "--unshared")


def test_interrupts():
    drill("interrupts", "--count", "8", "--kinds", "9", "--seed", "11")


@pytest.mark.slow
def test_kills_of_each_step_of_the_quickstart():
    drill("stage_kills", "--count", "27")


@pytest.mark.slow
def test_what_succeeded_once_is_refused_or_harmless_now():
    drill("seen_before")


def test_mutated_requests(monkeypatch, capsys):
    arguments = ["--overrides", "100", "--files", "20", "--layouts", "0", "--seed", "11"]
    monkeypatch.setattr(sys, "argv", ["mutated_requests", *arguments])
    assert mutated_requests.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize("number", [*range(14), 24, 37, 43, 48, 73, 127, 129, 136, 143, 149, 157, 176])
def test_hostile_inputs(number, tmp_path, monkeypatch):
    """The first of each kind, and those of seed 1 that once ended in a traceback."""
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(hostile_inputs.CANARY, str(tmp_path / "canary"))
    folder, names = tmp_path / "in" / "side", sorted(hostile_inputs.MAKERS)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, wrong = hostile_inputs.attack(folder, names[number % len(names)], random.Random(f"1/{number}"))
    assert wrong == [] and not (tmp_path / "canary").exists()


def test_a_member_larger_than_its_tar_asks_for_no_memory(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(2048))
    with pytest.raises(DataError, match="ends inside"):
        read_member(tmp_path / "x.tar", Member("x.png", 512, 2**62))


def test_a_toys_note_that_is_no_text(tmp_path):
    """Seed 0 of the mutated trainings."""
    (tmp_path / ".origin").write_bytes(b"\xff\xfethe first 40\n")
    assert toys._origin(tmp_path).endswith("the first 40")


def test_mutated_store(capsys):
    assert store_files.run("chain", 50, 11) == 0, capsys.readouterr().out


# -- in full ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "kills",
        "interrupts",
        "crowd",
        pytest.param("faults", marks=needs_compiler),
        pytest.param("users", marks=needs_root),
    ],
)
def test_in_full(name, seed):
    if name == "users" and seed:
        pytest.skip("the users draw nothing")
    drill(name, *FULL[name], *(("--seed", str(seed)) if name != "users" else ()))


@pytest.mark.slow
def test_a_thousand_overrides_and_200_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mutated_requests", "--overrides", "1000", "--files", "200", "--layouts", "30"])
    assert mutated_requests.main() == 0, capsys.readouterr().out


@pytest.mark.slow
def test_two_hundred_hostile_files(capsys):
    drill("hostile_inputs", "--count", "203")


@pytest.mark.slow
@pytest.mark.parametrize(("store", "count"), [("chain", 300), ("quickstart", 120), ("training", 80)])
def test_five_hundred_mutations(store, count):
    drill("store_files", "--store", store, "--count", str(count))
