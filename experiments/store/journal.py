"""The journal: metrics of an attempt as JSON lines in its folder, the truth that tracking is shipped from.

`Journal.log` costs the training thread a few microseconds: it fixes the point's time and puts it in a queue. A
background thread writes the queue about once a second and syncs it to disk every few seconds, so that a slow, full or
hung disk never stops training. Standard library only: jobs import this file, and it imports no tracker.

Lines of `journal.jsonl`, in the order they were logged:

    {"step": 100, "time": 1790000000000, "metrics": {"loss": 2.5, "lr": 0.0001}, "crc": "0c4e21a7"}
    {"resumed_at": 80, "time": 1790000000500, "crc": "91d5b2c0"}

Times are milliseconds since 1970, UTC. `resumed_at` says that points from its step on, logged before this line, no
longer count. `crc` is the CRC-32 (hex) of all that stands before it in its line; a line that does not fit it is left
out and named by `verify` and `sync`; lines of version 0.1 have none. Once a step is finished its record also
holds the sha256 of the whole file (`JournalSum`).

Values that JSON has no number for are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import json
import math
import os
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.store.documents import JournalSum, Start
from experiments.store.paths import StepFolder
from maskgit_core.files import open_file

#: Metrics under this prefix describe the machine; their step is seconds since the step's first attempt began, so a
#: resume at an optimizer step does not touch them.
SYSTEM_PREFIX = "system/"
FLUSH_EVERY_S = 1.0
SYNC_EVERY_S = 5.0
#: Lines kept in memory while the disk refuses them; beyond it the oldest are dropped (about 200 MB).
MAX_WAITING_LINES = 1_000_000
#: Stands before a line's checksum.
CRC = ', "crc": "'


class Point(NamedTuple):
    """One value of one metric."""

    metric: str
    step: int
    value: float
    time: int  # ms since 1970, UTC


class Line(NamedTuple):
    """A line of a journal: points at a step, or (`resumed`) the mark that points from `step` on no longer count."""

    step: int
    time: int  # ms since 1970, UTC
    metrics: Mapping[str, float]
    resumed: bool
    end: int = 0  # where the line ends (bytes from the start of the file)


class Journal:
    """Appends metrics to a file without ever making the caller wait or fail.

    Args:
        path: the file; made with its folder at the first write.
        attempt: number of the attempt that writes, named in warnings.
    """

    def __init__(self, path: Path, attempt: int = 1) -> None:
        self.path = Path(path)
        self.attempt = attempt
        self._waiting: deque[tuple[int, int, Mapping[str, float] | None]] = deque(maxlen=MAX_WAITING_LINES)
        self._rest = b""  # encoded bytes that the disk has not taken yet
        self._descriptor: int | None = None
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False
        self._warned = False
        self._synced_at = time.monotonic()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point a metric at `step`; the time is fixed now. Costs microseconds; nothing after `close`."""
        values = {name: float(value) for name, value in metrics.items()}
        self._put(int(step), values)

    def resumed_at(self, step: int) -> None:
        """States that points from `step` on, logged before by any attempt, no longer count."""
        self._put(int(step), None)

    def flush(self, *, sync: bool = False) -> None:
        """Hands everything logged so far to the file system (and to the disk with `sync`); never raises."""
        if self._pid != os.getpid():
            return  # a forked worker holds a copy; the points are its parent's
        with self._lock:
            try:
                self._write(sync)
            except OSError as error:
                self._warn(error)

    def close(self) -> None:
        """Writes and syncs what is left; safe to call twice."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        atexit.unregister(self.close)
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=30.0)
        self.flush(sync=True)
        with self._lock, contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- behind the caller's back -------------------------------------------------------------------------------
    def _put(self, step: int, values: Mapping[str, float] | None) -> None:
        if self._closed:
            return
        self._waiting.append((step, time.time_ns() // 1_000_000, values))
        if self._thread is None and self._pid == os.getpid():
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while not self._wake.wait(FLUSH_EVERY_S):
            self.flush(sync=time.monotonic() - self._synced_at > SYNC_EVERY_S)

    def _write(self, sync: bool) -> None:
        lines = []
        while self._waiting:
            lines.append(_encode(*self._waiting.popleft()))
        if lines:
            self._rest += "".join(lines).encode()
        if self._rest and self._descriptor is None:
            self._descriptor, torn = _open(self.path)
            self._rest = (b"\n" if torn else b"") + self._rest
        while self._rest:  # a full disk may take a part of it; the rest follows when there is space again
            assert self._descriptor is not None
            self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        if sync and self._descriptor is not None:
            os.fsync(self._descriptor)
            self._synced_at = time.monotonic()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"{self.path}: metrics of attempt {self.attempt} cannot be written ({error.strerror}); the work goes "
                "on and they are kept in memory until the disk takes them",
                file=sys.stderr,
                flush=True,
            )


def _open(path: Path) -> tuple[int, bool]:
    """The file opened for appending, and whether its last line is torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o664)
    size = os.fstat(descriptor).st_size
    return descriptor, size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _encode(step: int, milliseconds: int, values: Mapping[str, float] | None) -> str:
    if values is None:
        return _checked({"resumed_at": step, "time": milliseconds})
    metrics = {name: value if math.isfinite(value) else _special(value) for name, value in values.items()}
    return _checked({"step": step, "time": milliseconds, "metrics": metrics})


def _checked(entry: Mapping[str, object]) -> str:
    text = json.dumps(entry)[:-1]  # ASCII
    return f'{text}{CRC}{zlib.crc32(text.encode()):08x}"}}\n'


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


# -- reading ----------------------------------------------------------------------------------------------------------
def journals(step_folder: Path) -> list[Path]:
    """The journals of a step's present life, oldest attempt first.

    A finished attempt whose result was set aside (its manifest moved into its folder) ended an earlier life.
    """
    attempts = StepFolder(step_folder).attempts()
    ended = [i for i, attempt in enumerate(attempts) if attempt.set_aside]
    return [attempt.journal for attempt in attempts[ended[-1] + 1 if ended else 0 :]]


def read_lines(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """Whole, sound lines from byte `offset` on, and the offset after the last whole one; torn lines are left out."""
    try:
        with open_file(path) as file:
            file.seek(offset)
            data = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return [], offset
    lines = []
    for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        offset += len(raw)
        if (line := _decode(raw)) is not None:
            lines.append(line._replace(end=offset))
    return lines, offset


def _fits(raw: bytes) -> bool:
    """Whether a line is what was written, as far as its checksum can tell."""
    at = raw.rfind(CRC.encode())
    return at < 0 or raw[at + len(CRC) :] == b'%08x"}\n' % zlib.crc32(raw[:at])


def _decode(raw: bytes) -> Line | None:
    if not _fits(raw):
        return None
    try:
        entry = json.loads(raw)
        if "resumed_at" in entry:
            return Line(int(entry["resumed_at"]), int(entry["time"]), {}, True)
        metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
        return Line(int(entry["step"]), int(entry["time"]), metrics, False)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def journal_sum(path: Path) -> JournalSum:
    """Size and sha256 of a journal as it is now; of none those of an empty file."""
    data = path.read_bytes() if path.is_file() else b""
    return JournalSum(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def journal_problem(path: Path, known: JournalSum | None = None) -> str | None:
    """The fault of a journal, in words; a line that a kill has torn at its end is not.

    Args:
        known: what its step's record says of it. What a process left over on a lost node has added since is no damage.
    """
    data = path.read_bytes() if path.is_file() else b""
    for number, raw in enumerate(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), 1):
        if _decode(raw) is None:
            return f"{path}: line {number} is damaged; its points are left out"
    if known is not None and hashlib.sha256(data[: known.size]).hexdigest() != known.sha256:
        return f"{path}: was changed after its step finished ({len(data)} bytes, then {known.size}); restore the file"
    return None


def started(journal: Path) -> float | None:
    """When the journal's attempt began (ms since 1970), by its start document."""
    start = Start.read(journal.parent)
    return start.time * 1000.0 if start is not None else None


def attempt_lines(step_folder: Path) -> list[list[Line]]:
    """The lines of each attempt that count: what one wrote after its successor began is a zombie's and left out."""
    paths = journals(step_folder)
    lines = []
    for number, path in enumerate(paths):
        until = started(paths[number + 1]) if number + 1 < len(paths) else None
        lines.append([line for line in read_lines(path)[0] if until is None or line.time <= until])
    return lines


def merge(attempts: Iterable[Iterable[Line]]) -> list[Point]:
    """One curve a metric from the journals of all attempts, in order of logging.

    A resume mark removes the points from its step on. An attempt that logs without a mark began anew: its first
    step acts as one. Of two points of a metric at one step the first that still counts stays.
    """
    kept: dict[tuple[str, int], Point] = {}
    for number, lines in enumerate(attempts):
        marked = number == 0
        for line in lines:
            if line.resumed or (not marked and not _is_system(line)):
                kept = {key: p for key, p in kept.items() if key[1] < line.step or key[0].startswith(SYSTEM_PREFIX)}
                marked = True
            for name, value in line.metrics.items():
                kept.setdefault((name, line.step), Point(name, line.step, value, line.time))
    return list(kept.values())


def _is_system(line: Line) -> bool:
    return all(name.startswith(SYSTEM_PREFIX) for name in line.metrics)


def read_points(step_folder: Path) -> list[Point]:
    """All points of a step that count, over all its attempts; see `merge`.

    Without the collector of cycles, of which there are none: it would look at all points again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return merge(attempt_lines(step_folder))
    finally:
        if was_on:
            gc.enable()


def curves(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by metric, each sorted by step."""
    by_metric: dict[str, list[Point]] = {}
    for point in points:
        by_metric.setdefault(point.metric, []).append(point)
    return {metric: sorted(series, key=lambda p: p.step) for metric, series in sorted(by_metric.items())}
