"""The SQLite file in the store: one shipper at a time, made whole or not at all, set aside and made anew if damaged."""

from __future__ import annotations

import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from experiments.store.claims import Claim
from maskgit_core.errors import TrackingError
from maskgit_core.files import share_with_group

#: Tables that every MLflow database of the supported versions has.
TABLES = {"alembic_version", "experiments", "runs", "metrics", "latest_metrics", "params", "tags", "logged_models"}
#: Databases up to this size are checked page by page before each shipping.
MAX_CHECKED_BYTES = 64 * 1024 * 1024


@contextmanager
def embedded_lock(store: Path, wait_s: float = 120.0) -> Iterator[None]:
    """SQLite belongs to one shipper at a time: its first start is a race, and network disks lock badly."""
    place = store / "tracking"
    place.mkdir(parents=True, exist_ok=True)
    claim = Claim(place)
    deadline = time.monotonic() + wait_s
    while (owner := claim.take()) is not None:
        if time.monotonic() > deadline:
            raise TrackingError(
                f"{claim.path}: {owner.where()} is shipping to this store; wait, or remove this file if it is gone"
            )
        time.sleep(0.05 + random.random() * 0.1)
    try:
        yield
    finally:
        claim.release()


def prepare_database(store: Path, make: Callable[[str], object]) -> str | None:
    """Sees to it that `<store>/mlflow.db` is whole; call it under the lock.

    Args:
        make: makes a database at an address, with all tables.

    Returns:
        What was found damaged and set aside; None where nothing was.
    """
    without_syncing()
    path = store / "mlflow.db"
    for left in (store / "tracking").glob(".mlflow-*.db*"):  # of a process killed here
        left.unlink(missing_ok=True)
    told = None
    if path.exists() and (problem := damage(path)):
        aside = path.with_name(f"mlflow.db.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(path, aside)
        for tail in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + tail).unlink(missing_ok=True)
        told = f"{path}: {problem}; set aside as {aside.name} and made anew from the store"
    share_with_group(path)
    if not path.exists():
        temporary = store / "tracking" / f".mlflow-{uuid.uuid4().hex[:8]}.db"
        make(f"sqlite:///{temporary}")
        share_with_group(temporary)
        os.replace(temporary, path)
    return told


def without_syncing() -> None:
    """SQLite of this process no longer waits for the disk: a database that a power cut damages is made anew.

    Files are the truth (`prepare_database` sets a damaged database aside and the next shipping fills a new one).
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _no_sync):
        event.listen(Engine, "connect", _no_sync)


def _no_sync(connection: object, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def damage(path: Path) -> str | None:
    """Why a database is of no use; None where it is sound or merely busy."""
    try:  # mode=rw: what a process killed within a transaction left is rolled back by whoever opens it for writing
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)) as database:
            tables = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if missing := sorted(TABLES - tables):
                return f"lacks the tables [{', '.join(missing)}]; whoever made it was killed"
            if database.execute("SELECT count(*) FROM alembic_version").fetchone()[0] != 1:
                return "has no version; whoever made it was killed"
            if path.stat().st_size <= MAX_CHECKED_BYTES:
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
                return None if verdict == "ok" else f"is damaged ({' '.join(str(verdict).split())[:100]})"
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) or "busy" in str(error) else f"cannot be read ({error})"
    except sqlite3.DatabaseError as error:
        return f"is damaged ({error})"
    return None
