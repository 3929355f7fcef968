"""Who executes a step now: an exclusive file, broken only when its owner is proved dead.

No flock: it is unreliable on network disks. The claim is a hard link to a file written whole, which is exclusive there
too.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from experiments.store.typed_json import OPTIONAL, Document
from maskgit_core.errors import ArtifactError
from maskgit_core.files import process_start

HEARTBEAT_S = 30.0
#: Without a sign of life for so long, an owner may be gone.
SILENT_S = 300.0
#: (job id, its cluster or "", its user or "") -> True (alive), False (ended), None (unknown)
JobAlive = Callable[[str, str, str], "bool | None"]


@dataclass(frozen=True, kw_only=True)
class Owner(Document):
    """The process that holds a claim, described so that others can tell whether it still lives."""

    FILE = "claim.json"
    REMEDY = "so it is not known who works here; if nobody does: maskgit unlock {folder}"

    host: str
    boot: str
    pid: int
    pid_start: int  # clock ticks after boot; tells a reused pid apart
    user: str
    job: str | None = None  # SLURM job id (array_task), if any
    restart: int = 0  # how often SLURM requeued it
    launch: str | None = None
    time: float = 0.0
    pid_namespace: str = ""  # of containers; empty in claims of earlier releases
    cluster: str = field(default="", metadata=OPTIONAL)  # SLURM's ClusterName, in jobs
    token: str = field(default="", compare=False, metadata=OPTIONAL)  # of the claim

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls(
            host=socket.gethostname(),
            boot=boot_id(),
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or 0,
            user=user_name(),
            job=current_job(),
            restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            launch=os.environ.get("MASKGIT_LAUNCH_ID"),
            time=time.time(),
            pid_namespace=pid_namespace(),
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        )

    def where(self) -> str:
        """For people: job id or pid, host and user."""
        return f"{f'job {self.job}' if self.job else f'pid {self.pid}'} on {self.host} ({self.user})"


@cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@cache
def pid_namespace() -> str:
    """The kernel's name of the namespace that process ids are counted in; empty where there is none."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def user_name(uid: int | None = None) -> str:
    """The name of a user (None: of whoever runs this process); a number where the system knows none."""
    try:
        return getpass.getuser() if uid is None else pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return f"uid {os.getuid() if uid is None else uid}"


def current_job() -> str | None:
    """The SLURM job this process runs in, as squeue prints it (`12_3` for an array element)."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def is_alive(owner: Owner, job_alive: JobAlive | None = None) -> bool | None:
    """True, False (proved dead) or None (cannot be told from here).

    A job is judged by the queue; a process on this host by its pid and start time; a process of another boot is dead.
    Of a container with the same host name, whose process ids mean something else, nothing can be told.
    """
    if owner.job is not None:
        if owner.job == current_job() and owner.restart < int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            return False  # an earlier life of this very job
        known = job_alive(owner.job, owner.cluster, owner.user) if job_alive is not None else None
        if known is not None:
            return known
    if owner.host == socket.gethostname() and owner.pid_namespace in ("", pid_namespace()):
        if owner.boot and boot_id() and owner.boot != boot_id():
            return False
        start = process_start(owner.pid)
        return start is not None and (not owner.pid_start or start == owner.pid_start)
    return None


class Claim:
    """The right to execute one step.

    Args:
        folder: the step's folder.
        job_alive: asks the queue about a job id, where there is a queue.
    """

    def __init__(self, folder: Path, job_alive: JobAlive | None = None) -> None:
        self.folder = folder
        self._job_alive = job_alive
        self._token = uuid.uuid4().hex

    @property
    def path(self) -> Path:
        """The claim's file."""
        return self.folder / Owner.FILE

    def owner(self) -> Owner | None:
        """Who holds it, dead or alive."""
        return Owner.read(self.folder)

    def live_owner(self) -> Owner | None:
        """Who holds it, unless proved dead."""
        owner = self.owner()
        return owner if owner is not None and self._may_live(owner) else None

    def _may_live(self, owner: Owner) -> bool:
        """False where the owner is proved dead, or is a job that nothing is known of and that has long been silent.

        Such are the jobs of another cluster, and those of other users where the site hides them.
        """
        alive = is_alive(owner, self._job_alive)
        if alive is None and owner.cluster:
            return self.silent_s() <= 2 * SILENT_S
        return alive is not False

    def break_dead(self) -> None:
        """Removes the claim of an owner that is proved dead, so that no one waits for it."""
        owner = self.owner()
        if owner is not None and not self._may_live(owner):
            self._break(owner)

    def break_process(self, pid: int) -> None:
        """Removes the claim of a process of this host and boot that the caller knows to have ended."""
        owner = self.owner()
        if owner is not None and (owner.host, owner.boot, owner.pid) == (socket.gethostname(), boot_id(), pid):
            self._break(owner)

    def take(self) -> Owner | None:
        """Tries to take it; returns None on success, else the living owner. Breaks the claim of a dead one."""
        mine = replace(Owner.me(), token=self._token)
        while not mine.create(self.folder):
            owner = Owner.read(self.folder)
            if owner is None:
                continue  # released between the two looks
            if self._may_live(owner):
                return owner
            self._break(owner)
        return None

    def _break(self, dead: Owner) -> None:
        """Moves a dead owner's claim aside; only the one mover whose file it still is gets on."""
        aside = self.path.with_name(f".claim.{uuid.uuid4().hex[:8]}.dead")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        moved = Owner.load(aside)
        if moved is not None and moved.token != dead.token:
            # Someone took over between our look and our move: give it back, unless a third one is already there.
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
        with contextlib.suppress(OSError):
            aside.unlink()

    def release(self) -> None:
        """Gives it up, if it is still ours."""
        with contextlib.suppress(OSError, ArtifactError):
            owner = self.owner()
            if owner is not None and owner.token == self._token:
                self.path.unlink()

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Renews the file's time while the block runs, which tells others on other hosts that its owner lives."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                with contextlib.suppress(OSError):
                    os.utime(self.path)

        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def silent_s(self) -> float:
        """Seconds since the owner's last sign of life."""
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - self.path.stat().st_mtime)
        return 0.0
