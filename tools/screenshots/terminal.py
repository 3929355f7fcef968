"""A command in a pseudo-terminal, its screen as a terminal emulator holds it, and that screen as a page."""

from __future__ import annotations

import contextlib
import fcntl
import html
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte

#: The emulator's names of colours -> colours of the page.
COLOURS = {"black": "#31353a", "red": "#f07178", "green": "#8fce7a", "brown": "#e6c07b", "blue": "#6db7f2",
           "magenta": "#c792ea", "cyan": "#7fd4d0", "white": "#e6e6e6", "default": "#e6e6e6"}  # fmt: skip
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #16181b; }} pre {{ margin: 0; padding: 18px 20px; color: #e6e6e6;
font: 14px/1.42 "DejaVu Sans Mono", "Liberation Mono", monospace; white-space: pre; }} b {{ font-weight: 600; }}
</style><pre>{}</pre>"""


class Terminal:
    """A command in a pseudo-terminal of a given size.

    Args:
        command: run in `folder` with `environment` on top of this process's.
    """

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str], size: tuple[int, int]) -> None:
        columns, rows = size
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, cwd=folder, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows), **environment},
        )  # fmt: skip
        os.close(side)

    def wait(self, holds: Callable[[str], bool], limit_s: float) -> bool:
        """Feeds the screen until `holds(its text)` (True) or until the command or the time has ended (False)."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if not select.select([self._main], [], [], 0.2)[0]:
                continue
            try:
                self._stream.feed(os.read(self._main, 65536))
            except OSError:  # the other side is closed
                return holds(self.text())
            if holds(self.text()):
                return True
        return False

    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def page(self) -> str:
        """The screen as HTML."""
        lines = []
        for row in range(len(self.text().splitlines())):
            line, cells = "", self.screen.buffer[row]
            for column in range(self.screen.columns):
                cell = cells[column]
                colour = COLOURS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else COLOURS["default"])
                piece = f'<span style="color:{colour}">{html.escape(cell.data)}</span>' if cell.data != " " else " "
                line += f"<b>{piece}</b>" if cell.bold else piece
            lines.append(line.rstrip())
        return PAGE.format("\n".join(lines))

    def close(self) -> None:
        """Ends the command: Ctrl-C, and after twenty seconds without mercy."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.wait(lambda text: self.process.poll() is not None, 20)
            finally:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._main)
