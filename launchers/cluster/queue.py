"""The state of jobs in SLURM: one call of squeue or sacct for many of them. A hint only; no answer is an answer too.

`afterok` on a job id that SLURM has forgotten is satisfied at once, even if that job failed, and sacct lags by seconds;
therefore nothing here decides whether work is done.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from maskgit_core.errors import LaunchError

#: States in which a job may still run (again); every other state is an end.
LIVE = frozenset(
    {
        *(
            "PENDING",
            "RUNNING",
            "SUSPENDED",
            "STOPPED",
            "COMPLETING",
            "CONFIGURING",
            "RESIZING",
            "SIGNALING",
            "STAGE_OUT",
        ),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
    }
)
_SCRUBBED = (
    *("SLURM_", "SRUN_", "PMI_", "PMIX_", "MASKGIT_LAUNCH", "LAUNCHER_"),
    # Defaults that people set for their own commands would hide jobs from ours or change what is submitted.
    *("SQUEUE_", "SACCT_", "SBATCH_", "SCONTROL_", "SINFO_", "SALLOC_"),
)
#: Kept: which SLURM this is, and who pays where the profile has no account (docs/slurm.md).
_KEPT = ("SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_QOS")
_RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class QueueEntry:
    """A job (or array element) as the queue shows it."""

    job: str  # "12" or "12_3"
    state: str
    reason: str = ""
    node: str = ""
    user: str = ""
    name: str = ""

    @property
    def waits_again(self) -> bool:
        """True where the job is not executing at this moment but will be (again)."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def is_live(self) -> bool:
        """True while the job waits, runs or will be run again."""
        return self.state in LIVE


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what SLURM, MPI or a launcher put there for one job, and without defaults of SLURM tools.

    Inherited values break jobs submitted from inside a job, or worse, quietly pin them to the wrong cores.
    """
    given = os.environ if environment is None else environment
    kept = {k: v for k, v in given.items() if not k.startswith(_SCRUBBED) and k not in _RANK_NAMES}
    return kept | {name: given[name] for name in _KEPT if name in given}


def call_tool(
    command: Sequence[str], *, given: str | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs a SLURM command; raises `LaunchError` where it is not installed or does not answer."""
    try:
        return subprocess.run(
            list(command), input=given, capture_output=True, text=True, timeout=timeout_s, env=clean_environment()
        )
    except FileNotFoundError:
        raise LaunchError(
            f"{command[0]}: is not installed here; run this on a login node of the cluster, or use launcher=local"
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]}: did not answer within {timeout_s:.0f} s; try again later") from None


def base_id(job: str) -> str:
    """The array's id of an element's: "12_3" -> "12"."""
    return job.partition("_")[0]


def snapshot(jobs: Iterable[str] | None = None, *, names: Iterable[str] | None = None) -> dict[str, QueueEntry] | None:
    """Everything squeue still knows of these jobs, elements one by one; None where squeue gives no answer.

    Args:
        jobs: job ids (those of elements stand for their array); None: all jobs, of all users.
        names: only jobs with one of these names.
    """
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%u|%j"]
    if jobs is not None:
        bases = sorted({base_id(job) for job in jobs})
        if not bases:
            return {}
        command += ["-j", ",".join(bases)]
    if names is not None:
        command += ["-n", ",".join(sorted(set(names)))]
    try:
        done = call_tool(command, timeout_s=30.0)
    except LaunchError:
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return None
    entries = {}
    for line in done.stdout.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6:
            entries[fields[0]] = QueueEntry(*fields)
    return entries


class Queue:
    """squeue, asked for the jobs of interest alone and at most once in `fresh_s` seconds.

    Callers with many jobs name them all with `include` first: a job that is named later is a question of its own.
    """

    def __init__(self, fresh_s: float = 3.0) -> None:
        self._fresh_s = fresh_s
        self._jobs: set[str] = set()
        self._known: dict[str, QueueEntry] | None = None
        self._asked = float("-inf")

    def include(self, jobs: Iterable[str]) -> None:
        """Adds jobs (or their arrays) to those that squeue is asked about."""
        new = {base_id(job) for job in jobs} - self._jobs
        if new:
            self._jobs |= new
            self._asked = float("-inf")

    def known(self) -> dict[str, QueueEntry] | None:
        """The included jobs that squeue knows, ended ones while the site keeps them; None without an answer."""
        if time.monotonic() - self._asked > self._fresh_s:
            self._known = snapshot(self._jobs)
            self._asked = time.monotonic()
        return self._known

    def find(self, job: str) -> QueueEntry | None:
        """A job's entry, or None where it is unknown (or squeue gives no answer)."""
        self.include([job])
        return (self.known() or {}).get(job)

    def alive(self, job: str, cluster: str = "", user: str = "") -> bool | None:
        """True, False, or None where it cannot be told.

        Args:
            cluster: ClusterName of the job; nothing is known of the jobs of another one.
            user: owner of the job; a site may hide other people's jobs (`PrivateData=jobs`).
        """
        self.include([job])
        known = self.known()
        if known is None or (cluster and cluster != site().cluster):
            return None
        if job in known:
            return known[job].is_live
        # An array whose elements were not told apart yet is listed as one line by some versions.
        if any(entry.is_live for key, entry in known.items() if key.startswith(f"{job}_[")):
            return True
        return None if user not in ("", getpass.getuser()) and site().hides_jobs else False


@dataclass(frozen=True)
class Site:
    """Settings of a cluster (`scontrol show config`); empty where it does not answer."""

    cluster: str = ""
    hides_jobs: bool = False
    max_array_size: int | None = None


@cache
def site() -> Site:
    """The cluster whose tools are called here; asked once."""
    try:
        done = call_tool(["scontrol", "show", "config"], timeout_s=30.0)
    except LaunchError:
        return Site()
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    size = fields.get("MaxArraySize", "")
    return Site(
        cluster=fields.get("ClusterName", ""),
        hides_jobs="jobs" in fields.get("PrivateData", "") or "all" in fields.get("PrivateData", ""),
        max_array_size=int(size) if size.isdigit() else None,
    )


@dataclass(frozen=True)
class Usage:
    """The accounting of a job's last run: state, exit, and resources used and asked for."""

    job: str
    state: str
    exit_code: str
    node: str
    seconds: float
    limit_seconds: float | None
    cpu_seconds: float
    cpus: int
    max_rss_mb: float | None
    mem_mb: float | None

    @property
    def cpu_share(self) -> float | None:
        """Used over allocated CPU time, in [0, 1]."""
        return self.cpu_seconds / (self.seconds * self.cpus) if self.seconds and self.cpus else None


_SACCT = "JobID,State,ExitCode,NodeList,ElapsedRaw,TimelimitRaw,TotalCPU,AllocCPUS,MaxRSS,ReqMem,NNodes"


def usage(jobs: Iterable[str]) -> dict[str, Usage] | None:
    """Accounting of ended and running jobs by one sacct call; None where there is no accounting."""
    wanted = sorted({base_id(job) for job in jobs})
    if not wanted:
        return {}
    try:
        done = call_tool(["sacct", "-n", "-P", "-o", _SACCT, "-j", ",".join(wanted)], timeout_s=60.0)
    except LaunchError:
        return None
    if done.returncode != 0:
        return None
    return read_usage(done.stdout)


def read_usage(text: str) -> dict[str, Usage]:
    """Parses sacct's lines; the steps of a job (`12_3.0`) lend it their memory and CPU time."""
    usage: dict[str, Usage] = {}
    steps: dict[str, list[tuple[float, float]]] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(_SACCT.split(",")) or "[" in fields[0]:
            continue
        job, _, step = fields[0].partition(".")
        if step:
            steps.setdefault(job, []).append((_megabytes(fields[8]) or 0.0, clock_seconds(fields[6])))
            continue
        limit = float(fields[5]) * 60 if fields[5].isdigit() else None
        usage[job] = Usage(
            job=job,
            state=fields[1].split()[0] if fields[1] else "",
            exit_code=fields[2],
            node=fields[3],
            seconds=float(fields[4] or 0),
            limit_seconds=limit,
            cpu_seconds=clock_seconds(fields[6]),
            cpus=int(fields[7] or 0),
            max_rss_mb=None,
            mem_mb=_megabytes(fields[9]),
        )
    for job, parts in steps.items():
        if job in usage:
            known = usage[job].__dict__ | {"max_rss_mb": max(rss for rss, _ in parts) or None}
            known["cpu_seconds"] = max(usage[job].cpu_seconds, sum(cpu for _, cpu in parts))
            usage[job] = Usage(**known)
    return usage


def clock_seconds(text: str) -> float:
    """[days-][hours:]minutes:seconds -> seconds."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in (clock or "0").split(":"):
        total = total * 60 + float(part or 0)
    return total + 86400 * int(days or 0)


def _megabytes(text: str) -> float | None:
    """ "12K", "3.5G", "100Mn" (per node), "4Gc" (per core) -> MB."""
    digits = text.rstrip("nc")
    if not digits:
        return None
    factors = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
    try:
        return float(digits[:-1]) * factors[digits[-1]] if digits[-1] in factors else float(digits) / 1024**2
    except ValueError:
        return None
