"""A submission's folder and the calls of `sbatch` and `scontrol`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.cluster.queue import call_tool, clean_environment, site, snapshot
from maskgit_core.errors import LaunchError
from maskgit_core.files import read_json, write_json


class Submission:
    """The jobs of one submission, on disk: the base for undoing or finishing it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "submission.json"

    @property
    def is_mine(self) -> bool:
        """True where this user made it; nobody else may release or cancel its jobs."""
        return self._path.stat().st_uid == os.getuid()

    @property
    def state(self) -> str:
        """ "submitting", "submitted" (all ids known, not yet released), "released", "undone", or "" for none."""
        return str((read_json(self._path) or {}).get("state", ""))

    def begin(self, names: Sequence[str]) -> None:
        """Notes the names under which jobs will be in the queue, before the first is."""
        self._write({"state": "submitting", "names": list(names), "host": socket.gethostname(), "pid": os.getpid()})

    def complete(self, order: Sequence[str]) -> None:
        """Notes that every id is on disk, and in which order they are to be released."""
        self._write({**(read_json(self._path) or {}), "state": "submitted", "order": list(order)})

    def release(self) -> None:
        """Lets everything start that waits for nothing."""
        known = read_json(self._path) or {}
        order = known.get("order", [])
        for start in range(0, len(order), 100):
            done = call_tool(["scontrol", "release", ",".join(order[start : start + 100])])
            if done.returncode != 0 and "already finished" not in done.stderr and "Invalid job id" not in done.stderr:
                raise LaunchError(f"scontrol release: {_last_line(done.stderr)}; run the same command again to release")
        self._write({**known, "state": "released"})

    def roll_back(self) -> None:
        """Takes everything of this submission out of the queue, also jobs whose id was never heard."""
        known = read_json(self._path) or {}
        entries = snapshot(names=known.get("names", []))
        ids = {job.partition("_")[0] for job in entries or {}} | set(self.jobs())
        if entries is None and not ids:
            return  # no answer; `recover` will try again
        refused = call_tool(["scancel", *sorted(ids)]).returncode != 0 if ids else False
        if refused:
            left = snapshot(names=known.get("names", []))
            if left is None or any(entry.is_live for entry in left.values()):
                return
        if entries is not None:
            self._write({**known, "state": "undone"})

    def jobs(self) -> list[str]:
        """The ids heard so far."""
        return [job for path in sorted(self.folder.glob("*/jobs.json")) for job in read_json(path) or []]

    def recover(self) -> str:
        """Finishes or undoes a submission whose process is gone; returns its state afterwards."""
        if self.state == "submitting":
            self.roll_back()
        elif self.state == "submitted":
            self.release()
        return self.state

    def _write(self, value: Mapping[str, object]) -> None:
        write_json(self._path, {**value, "time": time.time()})


def sbatch(path: Path) -> str:
    """Submits a script; returns the job id.

    Raises:
        LaunchError: sbatch refused; carries its last line.
    """
    done = call_tool(["sbatch", "--parsable", str(path)])
    job = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not job.isdigit():
        raise LaunchError(f"sbatch: {_last_line(done.stderr) or 'gave no job id'} (script: {path}); nothing was queued")
    return job


def _scontrol(lines: Sequence[str]) -> None:
    """Feeds commands to one scontrol process: a call each would take ten milliseconds for every element."""
    if not lines:
        return
    done = subprocess.run(
        ["scontrol"], input="\n".join(lines) + "\n", capture_output=True, text=True, env=clean_environment()
    )
    trouble = [line for line in done.stderr.splitlines() if line.strip()]
    if trouble:
        raise LaunchError(f"scontrol update: {trouble[0]}; nothing was queued")


def max_array_size() -> int:
    """The cluster's limit on elements of an array (an index must be below it); 1000 where the cluster gives none."""
    return max(1, site().max_array_size or 1000)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(sbatch|scontrol|srun): error: ", "", lines[-1]) if lines else ""
