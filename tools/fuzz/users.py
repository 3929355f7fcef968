"""Two users and four umasks on one shared store: `python -m tools.fuzz.users` (as root; needs setpriv).

For each of the umasks 002, 022, 027 and 077 two users of one group work in turn in a store that their group may write
in: each runs a request of their own and the other's, ships, verifies, looks at the status, drops and moves to the
trash. Afterwards every file and folder must be open to the group. Wrong is: a traceback, an exit code other than 0, an
entry that the group cannot read, write and enter, a step executed twice.

`--unshared` is about a store that nobody prepared: the first user's own, as `run` makes it with the umask 022. The
second one may read all of it; whatever would write there is one line and code 2, and the owner's files stay as they
are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.fuzz.commands import ROOT, Answer, answered, request
from tools.fuzz.crowd import executed_twice

TURNS = 13  # commands of both users together
UNSHARED_TURNS = 18
UMASKS = (0o002, 0o022, 0o027, 0o077)
GROUP, USERS = 60000, {"ada": 60001, "bob": 60002}


def as_user(user: str, umask: int, home: Path, *arguments: str) -> Answer:
    """A command of another user; the capability lets them read the interpreter, wherever that is installed."""
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    drop = ["setpriv", f"--reuid={USERS[user]}", f"--regid={USERS[user]}", f"--groups={GROUP}", *rights]
    began = time.monotonic()
    done = subprocess.run(
        [*drop, sys.executable, "-m", "experiments.cli", *arguments],
        capture_output=True, text=True, check=False, umask=umask, cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), "USER": user, "LOGNAME": user,
             "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return answered(done.returncode, done.stdout + done.stderr, time.monotonic() - began)


def closed(store: Path) -> list[str]:
    """Entries that are not open to the group."""
    found = []
    for path in [store, *store.rglob("*")]:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            continue
        wanted = stat.S_IRWXG if stat.S_ISDIR(info.st_mode) else stat.S_IRGRP | stat.S_IWGRP
        if info.st_mode & wanted != wanted or info.st_gid != GROUP:
            found.append(f"{path.relative_to(store)}: mode {stat.S_IMODE(info.st_mode):04o}, group {info.st_gid}")
    return found


def attack(place: Path, umask: int, most: int = TURNS) -> list[str]:
    """All that two users do under one umask (or the first `most` of it); what went wrong."""
    store = place / f"store-{umask:03o}"
    store.mkdir()
    os.chown(store, USERS["ada"], GROUP)
    store.chmod(0o2775)
    homes = {}
    for user, number in USERS.items():
        homes[user] = place / f"{user}-{umask:03o}"
        homes[user].mkdir()
        os.chown(homes[user], number, number)
    at, wrong = ["--store", str(store)], []
    own = {"ada": "numbers.scale=2", "bob": "numbers.scale=3"}
    run = {user: ["run", *request(store, "chain", value)] for user, value in own.items()}
    turns = [("ada", run["ada"]), ("ada", ["sync", *at]), ("bob", run["bob"]), ("bob", run["ada"]),
             ("bob", ["sync", *at]), ("ada", [*run["bob"], "total.weight=2"]), ("ada", ["sync", *at]),
             ("bob", ["verify", "--deep", *at]), ("ada", ["status", *at]), ("bob", ["gc", "--drop", "chain", *at]),
             ("bob", ["gc", "--delete", "--yes", *at]), ("ada", ["run", *request(store, "chain")]),
             ("bob", ["sync", *at])]  # fmt: skip
    assert len(turns) == TURNS
    for user, command in turns[:most]:
        answer = as_user(user, umask, homes[user], *command)
        shown = f"umask {umask:03o}, {user}: {' '.join(command[:2])}"
        wrong += [f"{shown}: {text}" for text in answer.wrong(60)]
        if answer.code and not answer.trace:
            wrong.append(f"{shown}: code {answer.code}: {answer.text[-300:]!r}")
        wrong += [f"{shown} left {entry}" for entry in closed(store)[:3]]
    return wrong + [f"{step} was executed twice" for step in executed_twice(store)]


def contents(store: Path) -> dict[str, tuple[int, int, bytes]]:
    """Owner, mode and bytes of every file of a store."""
    files = [path for path in store.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(p.relative_to(store)): (p.stat().st_uid, p.stat().st_mode, p.read_bytes()) for p in files}


def unshared(place: Path, most: int = UNSHARED_TURNS) -> list[str]:
    """A second user in a store that its owner has not shared; returns what went wrong."""
    home = {user: place / f"{user}-unshared" for user in USERS}
    for user, number in USERS.items():
        home[user].mkdir()
        os.chown(home[user], number, number)
    store = home["ada"] / "runs"
    at, mine = ["--store", str(store)], request(store, "chain")
    other = request(store, "chain", "numbers.scale=3")
    reading = [["status", *at], ["plan", *mine], ["plan", *other], ["verify", "--deep", *at], ["failures", *at],
               ["logs", "total", *at], ["gc", *at], ["doctor", *mine]]  # fmt: skip
    writing = [["run", *other], ["run", *mine, "--redo", "total"], ["gc", "--drop", "chain", *at],
               ["gc", "--delete", "--yes", "--drop", "chain", *at], ["sync", *at], ["verify", "--repair", *at],
               ["unlock", "total", *at]]  # fmt: skip
    turns = [("bob", command, (0, 1, 2)) for command in reading] + [("bob", command, (0, 2)) for command in writing]
    assert len(turns) == UNSHARED_TURNS - 3
    first = [("ada", ["run", *mine], (0,)), ("ada", ["sync", *at], (0,))]
    wrong: list[str] = []
    before: dict[str, tuple[int, int, bytes]] = {}
    for user, command, codes in [*first, *turns[: most - 3], ("ada", ["run", *mine], (0,))]:
        answer = as_user(user, 0o022, home[user], *command)
        shown = f"unshared, {user}: {' '.join(word for word in command[:3] if 'store' not in word)}"
        wrong += [f"{shown}: {text}" for text in answer.wrong(60)]
        if answer.code not in codes and not answer.trace:
            wrong.append(f"{shown}: code {answer.code}: {answer.text[-300:]!r}")
        if user == "ada":
            before = before or (contents(store) if command[0] == "sync" else {})
        elif (now := contents(store)) != before:
            changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
            wrong.append(f"{shown}: changed {changed[:3]}")
    return wrong


def main() -> int:
    """Runs the attacks; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--umask", action="append", help="only this one (octal)")
    parser.add_argument("--turns", type=int, default=TURNS, help="only the first so many commands")
    parser.add_argument("--unshared", action="store_true", help="a store that nobody prepared for others")
    args = parser.parse_args()
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        raise SystemExit("users: only root (with setpriv) can be two users")
    masks, bad = [int(text, 8) for text in args.umask or ()] or UMASKS, 0
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        if args.unshared:
            wrong = unshared(Path(name))
            print(
                *wrong, f"users: 2 users, {UNSHARED_TURNS} commands on an unshared store: {len(wrong)} wrong", sep="\n"
            )
            return 1 if wrong else 0
        for umask in masks:
            wrong = attack(Path(name), umask, args.turns)
            bad += len(wrong)
            for line in wrong:
                print(line, flush=True)
    print(f"users: {len(masks)} umasks, 2 users, {args.turns} commands each: {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
