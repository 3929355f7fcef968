"""The store's memory of what it shipped: `<store>/tracking/<address>/<experiment>/<run>.json`; imports no mlflow."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.store.claims import Claim


def memory_of(store: Path, address: str) -> Path:
    """The folder that holds what was shipped to a tracking store."""
    return store / "tracking" / hashlib.sha256(address.encode()).hexdigest()[:12]


def short_uid(uid: str) -> str:
    """A run's uid in a form that needs no quoting in a filter; also the name of its note."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def digest_of(value: Any) -> str:
    """sha256 of plain data, to see whether it has changed."""
    return hashlib.sha256(json.dumps(value, default=dict).encode()).hexdigest()


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def creation_lock(memory: Path) -> Iterator[None]:
    """Keeps shippers on one disk from making twins; without it (a dead host's lock) twins are merged anyway."""
    place = memory / "creating"
    place.mkdir(parents=True, exist_ok=True)
    claim = Claim(place)
    deadline = time.monotonic() + 30.0
    while claim.take() is not None and time.monotonic() < deadline:
        time.sleep(0.02 + random.random() * 0.05)
    try:
        yield
    finally:
        claim.release()
