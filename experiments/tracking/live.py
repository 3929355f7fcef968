"""Live shipping from a job: a process beside the step, which the step neither waits for nor depends on.

Only where a tracking server (or a shared database) is configured; the embedded SQLite is never opened by a job. Killed,
late or cut off from the server, it loses nothing: `maskgit sync` ships the rest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from experiments.store.documents import Launch
from experiments.store.records import PipelineRecord
from experiments.tracking.address import ShipReport, follow
from maskgit_core.errors import ArtifactError

EVERY_S = 5.0


def live_uri(store: Path, pipeline: str | None) -> str | None:
    """The tracking server that an execution's jobs ship to; None for the embedded store."""
    record = PipelineRecord.of(store, pipeline)
    tracking = (record.settings.get("tracking") if record else None) or {}
    uri = tracking.get("uri") if tracking.get("ship", True) else None
    return str(uri) if uri and not str(uri).startswith("sqlite") else None


class Forwarder:
    """The process beside a job.

    Args:
        process: `python -m experiments.tracking.live ...`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @classmethod
    def start(cls, folder: Path, launch: Launch) -> Forwarder | None:
        """Starts shipping the step in `folder`, as its launch names it; None without a tracking server.

        Never raises: tracking must not stop a step from running.
        """
        store = folder.parent.parent
        try:
            uri = live_uri(store, launch.pipeline)
            if uri is None:
                return None
            arguments = [str(store), uri, launch.pipeline, launch.name, str(os.getpid())]
            log = folder / "logs" / "forwarder.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "experiments.tracking.live", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # signals to the job's group are the job's
                )
            return cls(process)
        except (OSError, ArtifactError) as error:
            print(f"warning: metrics are not shipped live ({error}); maskgit sync ships them", file=sys.stderr)
            return None

    def finish(self, wait_s: float = 30.0) -> bool:
        """Asks for a last round and waits a little for it; True where it came to its end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(wait_s) == 0
        except subprocess.TimeoutExpired:
            return False  # it goes on alone as long as it may


def forward(store: Path, uri: str, pipeline: str, step: str, parent: int, every_s: float = EVERY_S) -> int:
    """Ships one step until its process `parent` ends or a TERM comes, then once more; returns the problems left."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(10)
    from experiments.tracking.mlflow_store import ship

    def over() -> bool:
        return bool(stopped) or os.getppid() != parent

    def once() -> ShipReport:
        # While it runs, only its own folder is looked at; at the end also what the whole execution has come to.
        return ship(store, uri, pipelines=[pipeline], steps=[step], whole=over())

    left = 0
    for report in follow(once, every_s, over):
        left = len(report.problems)
        for problem in report.problems:
            print(problem, flush=True)
    return left


def announce(store: Path, pipeline: str) -> bool:
    """Shows an execution's runs in MLflow as soon as it is submitted, from a process nobody waits for.

    Only where a tracking server is configured; one that is away hears of them from the jobs or `maskgit sync`. Never
    raises; True where such a process was started.
    """
    uri = live_uri(store, pipeline)
    if uri is None:
        return False
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-m", "experiments.tracking.live", str(store), uri, pipeline]
    with suppress(OSError):
        subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        return True
    return False


def _announce(store: Path, uri: str, pipeline: str) -> int:
    with suppress(OSError):
        os.nice(10)
    from experiments.tracking.mlflow_store import ship
    from maskgit_core.errors import TrackingError

    with suppress(TrackingError):
        ship(store, uri, pipelines=[pipeline])
    return 0


def _main(store: str, uri: str, pipeline: str, step: str = "", parent: str = "0") -> int:
    if not step:
        return _announce(Path(store), uri, pipeline)
    return min(forward(Path(store), uri, pipeline, step, int(parent)), 1)


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
