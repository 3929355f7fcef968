"""A real MLflow server for tests, on SQLite or PostgreSQL, that may be killed and brought back on the same port."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tracked_store import TrackedStore

from experiments.tracking import server
from experiments.tracking.mlflow_store import ship


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def empty_database(tmp_path_factory) -> Path:
    """A database that MLflow has set up once for all tests of this session: setting one up costs seconds."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = shared / "empty-mlflow.db"
    if not made.exists():
        root = tmp_path_factory.mktemp("template")
        TrackedStore(root).write(steps=[])
        ship(root)
        os.replace(root / "mlflow.db", made)
    return made


class Server:
    """`with Server(folder) as server: server.uri`."""

    def __init__(self, folder: Path, uri: str | None = None, basic_auth: bool = False) -> None:
        self.folder, self.port, self.basic_auth = folder, free_port(), basic_auth
        self.backend = uri or f"sqlite:///{folder}/server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = server.start(
            self.folder, self.backend, port=self.port, basic_auth=self.basic_auth, log=self.folder / "server.txt"
        )
        server.wait_until_up(self.process, "127.0.0.1", self.port, 300.0)

    def kill(self) -> None:
        if self.process is not None:
            server.stop(self.process, signal.SIGKILL)
            self.process = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []


class Postgres:
    """A throw-away PostgreSQL (as the user `postgres` where tests run as root, which it refuses)."""

    def __init__(self) -> None:
        # Not below pytest's folder, which other users may not enter.
        self.folder, self.port, self.bin = Path(tempfile.mkdtemp(prefix="maskgit-pg-")), free_port(), POSTGRES[-1]
        self.uri = f"postgresql+psycopg2://maskgit@127.0.0.1:{self.port}/postgres"

    def _as_user(self, *command: str) -> list[str]:
        return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else list(command)

    def __enter__(self) -> "Postgres":
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        data = self.folder / "data"
        run = {"check": True, "capture_output": True, "cwd": "/"}
        made = [str(self.bin / "initdb"), "-D", str(data), "-U", "maskgit", "--auth=trust", "--no-sync"]
        subprocess.run(self._as_user(*made), **run)
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        start = [
            str(self.bin / "pg_ctl"),
            "-D",
            str(data),
            "-w",
            "-l",
            str(self.folder / "log"),
            "-o",
            options,
            "start",
        ]
        # Not captured: the server would keep the pipe open.
        subprocess.run(self._as_user(*start), check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *exc: object) -> None:
        stop = [str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-m", "immediate", "stop"]
        subprocess.run(self._as_user(*stop), check=False, cwd="/", capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
