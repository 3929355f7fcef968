"""Starts a light MLflow server on the store, in a process of its own; imports no mlflow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from maskgit_core.errors import TrackingError

#: Hosts a browser may name when nothing else was asked for (guards against DNS rebinding).
LOOPBACK = "localhost:*,127.0.0.1:*,[::1]:*,localhost,127.0.0.1"


def command(
    store: Path, *, host: str, port: int, allowed_hosts: str | None = None, basic_auth: bool = False
) -> list[str]:
    """The command line of the server; the database's address, which may hold a password, is in its environment."""
    hosts = allowed_hosts if allowed_hosts is not None else (LOOPBACK if host in ("127.0.0.1", "localhost") else None)
    return [
        sys.executable, "-m", "mlflow", "server",
        "--artifacts-destination", str(Path(store).absolute() / "mlflow-artifacts"),
        "--host", host, "--port", str(port), "--workers", "1",
        *(["--allowed-hosts", f"{hosts},{LOOPBACK}"] if hosts else []),
        *(["--app-name", "basic-auth"] if basic_auth else []),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Light (no job workers: two processes instead of eleven) and silent (no telemetry)."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return {**os.environ, **quiet}


def check_port(host: str, port: int) -> None:
    """Raises `TrackingError` where something else listens already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"--port: {host}:{port} cannot be used ({error.strerror}); choose another port or host"
            ) from None


def start(
    store: Path,
    uri: str,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    allowed_hosts: str | None = None,
    basic_auth: bool = False,
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """The server as a child process group, not yet answering; `wait_until_up` waits for it."""
    check_port(host, port)
    out = open(log, "ab") if log is not None else None  # noqa: SIM115 - the child keeps it
    try:
        return subprocess.Popen(
            command(store, host=host, port=port, allowed_hosts=allowed_hosts, basic_auth=basic_auth),
            env={**environment(), "MLFLOW_BACKEND_STORE_URI": uri},
            cwd=store,
            stdout=out,
            stderr=subprocess.STDOUT if out is not None else None,
            start_new_session=True,
        )
    finally:
        if out is not None:
            out.close()


def wait_until_up(server: subprocess.Popen[bytes], host: str, port: int, timeout_s: float = 120.0) -> None:
    """Returns once the server answers.

    Raises:
        TrackingError: it ended, or said nothing in time.
    """
    import requests

    deadline = time.monotonic() + timeout_s
    where = "127.0.0.1" if host == "0.0.0.0" else host
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"tracking server: ended with code {server.returncode}; its messages say why")
        with suppress(requests.RequestException):
            if requests.get(f"http://{where}:{port}/health", timeout=10).ok:
                return
        time.sleep(0.2)
    stop(server)
    raise TrackingError(f"tracking server: no answer on {host}:{port} within {timeout_s:.0f} s")


def stop(server: subprocess.Popen[bytes], number: int = signal.SIGTERM, wait_s: float = 10.0) -> None:
    """Ends the server and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, number)
    with suppress(subprocess.TimeoutExpired):
        server.wait(wait_s)
        return
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def serve(
    store: Path,
    uri: str,
    *,
    host: str,
    port: int,
    allowed_hosts: str | None = None,
    basic_auth: bool = False,
    page: str | None = None,
    browser: bool = False,
) -> int:
    """Runs the server until Ctrl-C or TERM; 0 when stopped so, 1 where it ended by itself.

    Args:
        page: an address to print, and to open where `browser` is set, once the server answers.
    """
    Path(store).mkdir(parents=True, exist_ok=True)
    server = start(store, uri, host=host, port=port, allowed_hosts=allowed_hosts, basic_auth=basic_auth)
    stopped: list[int] = []

    def asked(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    try:
        wait_until_up(server, host, port)
        print(f"MLflow shows {store} on http://{host}:{port} (Ctrl-C ends it)", flush=True)
        if page is not None:
            print(f"  {page}", flush=True)
            if browser:
                import webbrowser

                webbrowser.open(page)
        while server.poll() is None and not stopped:
            time.sleep(0.2)
    finally:
        stop(server)
    return 0 if stopped else 1
