"""Commands under attack: in this process, or in forks of it that can be killed, given a faulty disk, run side by side.

A fork of a process that has imported everything starts in milliseconds, which is what makes hundreds of kills cheap.
Nothing but imports may have happened in the process that forks: no threads, no open database.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import copy
import importlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests" / "toylab" / "conf"
LIMIT_S = 20.0
HEAVY = ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "sqlalchemy", "alembic.command")


@dataclass(frozen=True)
class Answer:
    """Exit code, everything printed, seconds, and the traceback where one escaped or was printed."""

    code: int
    text: str
    seconds: float
    trace: str = ""

    def wrong(self, limit_s: float = LIMIT_S) -> list[str]:
        """The faults no command may show: a traceback, a long silence, an error of several lines, another exit code."""
        found = []
        if self.trace:
            lines = [line for line in self.trace.splitlines() if line and not line.startswith((" ", "error: "))]
            found.append(f"traceback: {' | '.join(lines[:3])[:600]} | {lines[-1][:300] if lines else ''}")
        if self.seconds > limit_s * patience():
            found.append(f"{self.seconds:.0f} s")
        if not self.trace and self.code == 2 and self.text.count("error: ") != 1:
            found.append(f"code 2 with {self.text.count('error: ')} lines of error: {self.text[-300:]!r}")
        if not self.trace and self.code not in (0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM):
            found.append(f"code {self.code}: {self.text[-300:]!r}")
        return found


def patience() -> float:
    """How much longer than on an idle machine everything takes now: processes that want to run, for each core."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def answered(code: int, text: str, seconds: float, trace: str = "") -> Answer:
    """An answer, with the traceback that its text may hold."""
    if not trace and "Traceback (most recent call last)" in text:
        trace = text
    return Answer(code, text, seconds, trace)


def ask(*arguments: str) -> Answer:
    """Runs a command in this process."""
    from experiments.cli import main

    out = io.StringIO()
    began = time.monotonic()
    code, trace = -1, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(list(arguments))
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            trace = traceback.format_exc()
    return answered(code, out.getvalue(), time.monotonic() - began, trace)


class Fork:
    """A command in a fork of this process.

    Args:
        arguments: of the command.
        environment: variables to set in the fork (the C library sees them too).
        before: called in the fork first.
    """

    def __init__(
        self,
        arguments: Iterable[str],
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        handle, name = tempfile.mkstemp(prefix="fork-", suffix=".txt")
        self._output = Path(name)
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(handle)
            return
        _become(handle, list(arguments), environment or {}, before)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to it and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, limit_s: float | None = None) -> Answer:
        """Waits for its end; after `limit_s` (None: 120 s, more on a busy machine) it is killed: it hangs."""
        code, limit_s = None, limit_s or 120.0 * patience()
        while code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self.began > limit_s:
                self.kill()
                os.waitpid(self.pid, 0)
                code = -signal.SIGALRM
            else:
                time.sleep(0.005)
        seconds = time.monotonic() - self.began
        text = self._output.read_text(errors="replace")
        self._output.unlink()
        return answered(code, text, seconds)


def _become(handle: int, arguments: list[str], environment: Mapping[str, str], before: Callable[[], object] | None
            ) -> None:  # fmt: skip
    """The life of a fork; never returns."""
    code, has_begun = 70, False
    atexit._clear()  # what the parent has to tidy up is not this process's
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (handle, 1), (handle, 2)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        if before is not None:
            before()
        from experiments.cli import main

        has_begun = True
        code = main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        if has_begun or not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()  # Ctrl-C before the command began is this file's, not the command's
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()
        os._exit(code)


def forked(*arguments: str, environment: Mapping[str, str] | None = None, limit_s: float | None = None) -> Answer:
    """Runs a command in a fork to its end."""
    return Fork(arguments, environment).wait(limit_s)


def preload(*more: str) -> None:
    """Imports what commands import late, so that forks need not."""
    from experiments.commands import command_names

    for name in (*(f"experiments.commands.{verb}" for verb in command_names()), "experiments.planning.pipeline",
                 "experiments.launching.execution", "experiments.running.job", "launchers.inline",
                 "experiments.tracking.mlflow_store", *more):  # fmt: skip
        importlib.import_module(name)


@contextlib.contextmanager
def composed_once() -> Iterator[None]:
    """Hydra composes equal choices only once in the block: hundreds of commands ask for the same experiment."""
    from experiments.config import compose as composing

    compose, known = composing.compose, {}

    def once(choices: Any, config_dirs: Any = ()) -> Any:
        key = (tuple(choices), tuple(config_dirs))
        if key not in known:
            known[key] = compose(choices, config_dirs)
        return copy.deepcopy(known[key])

    composing.compose = once  # type: ignore[assignment]
    try:
        yield
    finally:
        composing.compose = compose


def request(store: Path, experiment: str = "chain", *overrides: str) -> list[str]:
    """Arguments that ask for an experiment of the toy lab in `store`, inside the process, without shipping."""
    return [f"experiment={experiment}", "launcher=inline", "tracking.ship=false", f"paths.store={store}",
            "--config-dir", str(LAB), *overrides]  # fmt: skip


def results(store: Path) -> dict[str, str]:
    """The outputs that count, by path."""
    return {str(p.relative_to(store)): p.read_text(errors="replace") for p in sorted(store.glob("*/*/files/*.json"))}


def leftovers(store: Path) -> list[str]:
    """Temporary files that nobody needs any more."""
    return sorted(str(p.relative_to(store)) for p in store.rglob(".*") if p.is_file() and p.suffix == ".tmp")


class Attackable(Protocol):
    """One round of `attacked`."""

    def attack(self, name: str, draw: random.Random) -> tuple[str, list[str]]:
        """One attack of this name: what became of it, in a word or two, and what went wrong."""


def attacked(about: str, attacks: Sequence[str], drill: Callable[[Path], Attackable]) -> int:
    """The command line of a drill: attacks in turn, each thing wrong, and how often what became of them; 1 if wrong.

    Args:
        about: the program's docstring.
        attacks: their names; those that open MLflow's database come last.
        drill: made in an empty folder, once everything is imported.
    """
    program = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=attacks, help="one of the attacks")
    parser.add_argument("--kinds", type=int, default=len(attacks), help="only the first so many attacks")
    args = parser.parse_args()
    names = [args.only] if args.only else attacks[: args.kinds]
    preload(*(HEAVY if {*names} & {"sync", "first ship"} else ()))
    draw, counts = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        made = drill(Path(place))
        for number in range(args.count):
            name = names[number % len(names)]
            became, wrong = made.attack(name, draw)
            counts[became] += 1
            counts["wrong"] += bool(wrong)
            for line in wrong:
                print(f"{number} {name}: {line}", flush=True)
    print(f"{program}: seed {args.seed}, {args.count} attacks: {dict(sorted(counts.items()))}")
    return 1 if counts["wrong"] else 0
