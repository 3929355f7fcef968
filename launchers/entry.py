"""The first thing that runs in a launched process: `python -u -m launchers.entry module:function '[args as JSON]'`.

Makes sure that the process does not outlive the one that started it, calls the function and exits with the code it
returns. Only the standard library is imported here, so that a wrong request is answered in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Sequence

from launchers.calls import resolve
from maskgit_core.errors import MaskgitError

LIFELINE = "LAUNCHER_LIFELINE"  # variable: descriptor of a pipe whose other end the launcher holds open


def die_with(lifeline: int) -> None:
    """Forks a watcher that kills what is left of this process group once the launcher, or this process, is gone.

    A process rather than a thread: a thread would wait for the interpreter lock while this process is inside a long C
    call, and PR_SET_PDEATHSIG would spare the workers that this process started. Must be called by a group leader.
    """
    ours_read, ours_write = os.pipe()
    if os.fork():
        os.close(ours_read)
        os.close(lifeline)
        return  # `ours_write` stays open for as long as this process, or a worker it forked, lives
    os.close(ours_write)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    with contextlib.suppress(OSError):
        select.select([lifeline, ours_read], [], [])
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Calls the function named by the first argument with the JSON list in the second; returns its exit code."""
    target, arguments = argv if argv is not None else sys.argv[1:]
    if lifeline := os.environ.pop(LIFELINE, None):
        die_with(int(lifeline))
    try:
        return resolve(target)(*json.loads(arguments)) or 0
    except MaskgitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
