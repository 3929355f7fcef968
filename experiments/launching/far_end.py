"""The other end of a command that was typed on another machine: `python -m experiments.launching.far_end COMMAND ...`.

Ctrl-C and a lost connection reach a command here as an interruption: through its terminal, or, where it has none, as
the end of its standard input.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

#: In an argument: the folder of the request's files, which the variable names.
REQUEST, REQUEST_VARIABLE = "@REQUEST@", "MASKGIT_REQUEST"


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out a command of `maskgit`; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    request = os.environ.pop(REQUEST_VARIABLE, "")
    signal.signal(signal.SIGHUP, _hung_up)
    if words[:1] == ["--terminal"]:
        words = words[1:]
    else:
        threading.Thread(target=_interrupt_at_end, name="connection", daemon=True).start()
    try:
        command = import_module("experiments.cli").main
        return int(command([word.replace(REQUEST, request) for word in words]))
    except ModuleNotFoundError as error:
        print(f"error: launcher.ssh.python: {sys.executable} lacks the package {error.name}; name the interpreter of "
              "an environment that has this project's packages", file=sys.stderr)  # fmt: skip
        return 2


def _interrupt_at_end() -> None:
    """Interrupts this process once its standard input has ended."""
    while os.read(0, 4096):
        pass
    if _is_gone(1):
        _silence()
    os.kill(os.getpid(), signal.SIGINT)


def _is_gone(descriptor: int) -> bool:
    """True where nobody reads any more what is written to it."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are always told
    return bool(poll.poll(200))


def _hung_up(number: int, frame: FrameType | None) -> None:
    _silence()
    os.kill(os.getpid(), signal.SIGINT)


def _silence() -> None:
    """Sends what is printed nowhere: a terminal or connection that is gone refuses it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


if __name__ == "__main__":
    sys.exit(main())
