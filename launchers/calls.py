"""The interface of launchers: calls, the resources they ask for, and their outcomes.

A launcher is `launchers/<name>.py` with a class `Launcher` that satisfies `LauncherProtocol`; its keyword-only
signature is the schema of the config group `launcher`. Launchers know nothing of the work itself: a call names a
function `module:function` and plain arguments. `inline` and `local` wait until all calls have ended; `slurm` returns
once they are in the queue.

The function returns an exit code: 0 done, 1 failed, 2 the request is wrong, 74 the disk is full, 75 saved its state
and wants to be run again, 130 or 143 saved its state and ended because it was asked to. Its process finds RANK,
WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment (accelerate and
torch.distributed read them), OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES, and MASKGIT_LAUNCH_ID, which is the same for all
ranks of one start.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launchers.retry import Retry
from maskgit_core.errors import LaunchError

CONTINUE = 75  # exit code (EX_TEMPFAIL): state is saved, run me again
DISK_FULL = 74  # exit code (EX_IOERR): no room on the disk; the same may work later
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes: state is saved, asked to end


@dataclass(frozen=True)
class Resources:
    """The resources of one call; all processes of a call are alike.

    Args:
        ranks: processes that work together on the call (one rendezvous).
        nodes: machines they are spread over evenly (SLURM only).
        cpus_per_task, gpus_per_task: for each process.
        mem_gb: memory for each node in GiB; None leaves it to the site.
        timeout_min: time limit in minutes; None leaves it to the site.
        pack: how many calls of one group share one job task, one after another (SLURM only).
        partition, qos, account, constraint, gpu_type: instead of the launcher's (SLURM only).
        retry: which ends are mended by running the call again (SLURM only).
    """

    ranks: int = 1
    nodes: int = 1
    cpus_per_task: int = 1
    gpus_per_task: int = 0
    mem_gb: float | None = None
    timeout_min: float | None = None
    pack: int = 1
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        for name in ("ranks", "nodes", "cpus_per_task", "pack"):
            if getattr(self, name) < 1:
                raise LaunchError(f"{name}: found {getattr(self, name)}; at least 1 is needed")
        if self.gpus_per_task < 0:
            raise LaunchError(f"gpus_per_task: found {self.gpus_per_task}; use 0 for none")
        for name in ("mem_gb", "timeout_min"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise LaunchError(f"{name}: found {value}; it must be above 0, or null for the site's default")
        if self.ranks % self.nodes:
            raise LaunchError(f"ranks: {self.ranks} processes cannot be spread evenly over {self.nodes} nodes")

    @property
    def cores(self) -> int:
        """CPU cores of all processes together."""
        return self.ranks * self.cpus_per_task

    @property
    def gpus(self) -> int:
        """GPUs of all processes together."""
        return self.ranks * self.gpus_per_task


@dataclass(frozen=True)
class Call:
    """One function call to be executed somewhere.

    Args:
        key: unique among the calls of one launch.
        name: what people read; also the job's name on SLURM.
        target: "module:function"; it is called with `args` and returns an exit code.
        args: plain data (JSON).
        log: the file that gets the output; ranks above 0 write to `<stem>.rank<N><suffix>` beside it.
        needs: keys of calls that must have ended well before this one starts; keys not in the launch count as done.
        group: calls of one group with equal resources may be submitted as one array.
        progress: "module:function" that, called with `args`, returns plain data that changes as the call gets on;
            a job restarted again and again without a change is given up (SLURM only).
        after: keys of calls that must only have ended, well or not (SLURM only).
        cleanup: "module:function" that is called with `args[0]` and the id of the call's process after that was killed
            (SLURM only).
        ended: "module:function" that is called with `args[0]` and the exit code once the call has ended for good
            (SLURM only).
    """

    key: str
    name: str
    target: str
    args: Sequence[Any]
    log: Path
    needs: tuple[str, ...] = ()
    group: str = ""
    resources: Resources = field(default_factory=Resources)
    progress: str = ""
    after: tuple[str, ...] = ()
    cleanup: str = ""
    ended: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened to a call: `kind` is "started", "finished", "failed", "blocked" or "stopped"."""

    kind: str
    call: Call
    message: str = ""
    seconds: float = 0.0
    outcome: Outcome | None = None  # of a call that has ended


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Args:
        state: "done", "failed", "blocked" (something it needs failed), "stopped" (asked to end; goes on next time) or
            "submitted" (in a queue).
        exit_code: of the first process that did not end well, else 0; negative: the signal that killed it.
        message: why, in a few words.
        seconds: wall time.
        jobs: ids in the queue; several form a chain of which any may do the work.
    """

    state: str
    exit_code: int = 0
    message: str = ""
    seconds: float = 0.0
    jobs: tuple[str, ...] = ()


OnEvent = Callable[[Event], None]
#: Job ids by call key, and the keys of the calls that share their job with others.
OnIds = Callable[[Mapping[str, tuple[str, ...]], Collection[str]], None]


@dataclass(frozen=True)
class LaunchContext:
    """The surroundings of one launch that a detached launcher needs.

    Args:
        folder: new and on a disk that the nodes share; keeps scripts, ids and notes of this submission.
        code: folder the jobs import from and start in.
        queued: job ids of calls that others have submitted and that `needs` may name.
        packed: those of them that share their job with other calls.
        on_ids: called with all ids before anything may start; an error it raises undoes the submission.
        tell: called with remarks for the user.
    """

    folder: Path
    code: Path
    queued: Mapping[str, Sequence[str]] = field(default_factory=dict)
    packed: Collection[str] = ()
    on_ids: OnIds = lambda links, shared: None
    tell: Callable[[str], None] = lambda line: None


class LauncherProtocol(Protocol):
    """The interface of every `launchers/<name>.py: Launcher`."""

    #: True: `launch` returns as soon as everything is in a queue, and nothing depends on this process any more.
    is_detached: bool
    #: True: the output of a call is shown while it runs, besides being kept in its log.
    echoes: bool

    def check(self, calls: Sequence[Call]) -> list[str]:
        """Raises `LaunchError` where one of the calls can never run here; returns remarks on what was checked."""

    def launch(
        self, calls: Sequence[Call], *, on_event: OnEvent | None = None, context: LaunchContext | None = None
    ) -> dict[str, Outcome]:
        """Runs or submits all calls in the order of their needs; returns an outcome for each key.

        Args:
            context: required by detached launchers, ignored by the others.

        Raises:
            LaunchError: it cannot be done; nothing runs or stays in a queue.
        """


def topological(calls: Iterable[Call]) -> list[Call]:
    """The calls in an order in which each comes after all it needs; otherwise in the given order.

    Raises:
        LaunchError: two calls share a key, or the needs form a cycle.
    """
    given = list(calls)
    by_key = {call.key: call for call in given}
    if len(by_key) != len(given):
        twice = next(call.key for i, call in enumerate(given) if call.key in {c.key for c in given[:i]})
        raise LaunchError(f"{twice}: two calls have this key; keys must be unique in one launch")
    missing = {call.key: {need for need in (*call.needs, *call.after) if need in by_key} for call in given}
    wanted_by: dict[str, list[str]] = {}
    for key, needs in missing.items():
        for need in needs:
            wanted_by.setdefault(need, []).append(key)
    ready = [call.key for call in given if not missing[call.key]]
    ordered: list[Call] = []
    for key in ready:  # grows while it is walked
        ordered.append(by_key[key])
        for waiting in wanted_by.get(key, ()):
            missing[waiting].discard(key)
            if not missing[waiting]:
                ready.append(waiting)
    if len(ordered) < len(given):
        stuck = ", ".join(sorted(key for key, needs in missing.items() if needs))
        raise LaunchError(f"{stuck}: these calls wait for each other in a circle; remove one of their needs")
    return ordered


def resolve(target: str) -> Callable[..., int | None]:
    """The function named by "module:function".

    Raises:
        LaunchError: there is no such module or function.
    """
    module_name, _, function_name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise LaunchError(f"{target}: no such function ({error}); write it as module:function") from error
    if not callable(function):
        raise LaunchError(f"{target}: this is not a function; write it as module:function")
    return function  # type: ignore[no-any-return]


def rank_log(log: Path, rank: int) -> Path:
    """The file that holds the output of one rank."""
    return log if rank == 0 else log.with_name(f"{log.stem}.rank{rank}{log.suffix}")


def describe_exit(code: int) -> str:
    """An exit code in words; negative codes are signals, as `subprocess` reports them."""
    if code >= 0:
        return "the disk is full" if code == DISK_FULL else f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def rank_variables(
    rank: int, world_size: int, *, local_rank: int, local_world_size: int, address: str, port: int
) -> dict[str, str]:
    """The variables that `accelerate launch` and `torchrun` put into a process's environment."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def first_obstacle(call: Call, outcomes: Mapping[str, Outcome]) -> str | None:
    """The key of something this call needs that did not end well, or None."""
    return next((need for need in call.needs if need in outcomes and outcomes[need].state != "done"), None)
