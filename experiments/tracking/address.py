"""Where MLflow is, how it is reached, and how its refusals are told in one line; imports no mlflow."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiments.config.settings import without_password
from maskgit_core.errors import TrackingError


@dataclass
class ShipReport:
    """The outcome of `ship`: runs seen and touched, points sent, and runs that could not be shipped (one line each)."""

    uri: str
    runs: int = 0
    touched: int = 0
    points: int = 0
    problems: list[str] = field(default_factory=list)


@contextmanager
def told(address: str) -> Iterator[None]:
    """Turns whatever a tracking store may answer into one line; errors of ours pass unchanged."""
    try:
        yield
    except Exception as error:
        # By module, so that nothing heavy is imported to name the classes.
        if not type(error).__module__.startswith(("mlflow.", "requests.", "urllib3.", "sqlalchemy.", "alembic.")):
            raise
        raise TrackingError(f"tracking.uri: {without_password(address)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if any(sign in text for sign in ("401", "Unauthorized", "not authenticated", "password authentication failed")):
        return (
            "refuses these credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "(or MLFLOW_TRACKING_TOKEN)"
        )
    if "403" in text:
        return (
            "does not allow this host name or user; use its IP address, or start the server with --allowed-hosts "
            f"({text[:120]})"
        )
    away = ("Max retries", "Connection", "timed out", "could not connect", "connection refused")
    if type(error).__module__.startswith("requests.") or any(sign in text for sign in away):
        return "cannot be reached; start the server, then maskgit sync"
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def modules_set_apart() -> Iterator[None]:
    """Spares the garbage collector the half million objects of MLflow's modules, which the many short-lived ones of a
    database session make it walk through again and again: a third of the time that shipping takes."""
    if gc.get_freeze_count():  # somebody else's doing, and theirs to end
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def knock(address: str, timeout_s: float = 5.0) -> None:
    import requests

    requests.get(f"{address.rstrip('/')}/health", timeout=timeout_s)


def follow(ship_once: Callable[[], ShipReport], every_s: float, stop: Callable[[], bool]) -> Iterator[ShipReport]:
    """Ships again and again until `stop()`, passing over a server that is away; the last round comes after the stop."""
    while True:
        ending = stop()
        try:
            yield ship_once()
        except TrackingError as error:
            yield ShipReport("", problems=[str(error)])
        if ending:
            return
        deadline = time.monotonic() + every_s
        while time.monotonic() < deadline and not stop():
            time.sleep(min(0.2, every_s))
