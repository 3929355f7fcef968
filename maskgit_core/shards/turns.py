"""Who makes which shard: processes that share a folder, need not talk to each other, and may come and go.

Process r of W begins with shards r, r + W, ... and then takes over what is missing. A claim beside a shard says that
somebody is at it; it only saves work. Nothing depends on it: two makers of one shard do no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskgit_core.files import process_start
from maskgit_core.shards.writer import read_index, shard_name

HEARTBEAT_S = 5.0
STALE_S = 45.0  # a claim whose file time stood still for this long, watched from here


class ShardTurns:
    """Hands out missing shards.

    Args:
        folder: where shards are published.
        num_shards: how many there will be.
        rank, world_size: which shards to begin with.
    """

    def __init__(self, folder: Path, num_shards: int, rank: int = 0, world_size: int = 1) -> None:
        self.folder, self.num_shards = folder, num_shards
        own = list(range(rank, num_shards, world_size))
        others = [number for number in range(num_shards) if number % world_size != rank]
        # From the far end, each process from another place, so that helpers rarely meet.
        shift = len(others) * rank // max(world_size, 1)
        self._wanted = own + (others[shift:] + others[:shift])[::-1]
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "birth": process_start(os.getpid()),
            "id": uuid.uuid4().hex,
        }
        self._held: set[int] = set()
        self._watched: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="shard-claims", daemon=True).start()

    def missing(self) -> list[int]:
        """Shards that are not done yet, in the order in which this process would take them."""
        self._wanted = [number for number in self._wanted if read_index(self.folder, number) is None]
        return list(self._wanted)

    def available(self) -> Iterator[int]:
        """Missing shards that nobody is at, each claimed as it is yielded; ends when there are none at present."""
        for number in self.missing():
            if number not in self._held and read_index(self.folder, number) is None and self._claim(number):
                yield number

    def release(self, number: int) -> None:
        """Gives a shard back, done or not."""
        with self._lock:
            self._held.discard(number)
            with contextlib.suppress(OSError):
                self._path(number).unlink()

    def close(self) -> None:
        """Gives all shards back."""
        self._closed.set()
        for number in list(self._held):
            self.release(number)

    def _path(self, number: int) -> Path:
        return self.folder / f".{shard_name(number)}.claim"

    def _claim(self, number: int) -> bool:
        path = self._path(number)
        if self._is_alive(number, path):
            return False
        with self._lock:
            with contextlib.suppress(OSError):  # a claim that cannot be written only costs double work
                path.unlink(missing_ok=True)
                with open(path, "x") as file:
                    json.dump(self._me, file)
            self._held.add(number)
        return True

    def _is_alive(self, number: int, path: Path) -> bool:
        try:
            owner: dict[str, Any] = json.loads(path.read_text())
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            owner, beat = {}, 0
        if owner.get("host") == self._me["host"]:
            return owner.get("birth") is not None and owner["birth"] == process_start(int(owner["pid"]))
        # Another machine's clock is not compared with ours: only whether its heartbeat moves while we watch.
        seen, since = self._watched.get(number, (-1, 0.0))
        if beat != seen:
            self._watched[number] = (beat, time.monotonic())
            return True
        return time.monotonic() - since < STALE_S

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            with self._lock:
                for number in self._held:
                    with contextlib.suppress(OSError):
                        os.utime(self._path(number))
