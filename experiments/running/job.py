"""Executes one step in its folder: what every launcher calls, in every process of the step.

Exit codes: 0 done, 1 failed, 2 the request cannot be met (one line), 74 the disk is full, 75 saved and wants to be
continued, 143 stopped on request (saved; goes on at the next run).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from experiments.config.specs import Input
from experiments.console import duration
from experiments.monitoring.queue import job_alive
from experiments.running.attempt import Attempt, Stopped, SupersededError, wait_for_file
from experiments.running.binding import arguments, changed_input, input_manifests, load_inputs
from experiments.running.signals import StopFlag
from experiments.running.system_metrics import peak_memory_gb, system_metrics
from experiments.store import provenance
from experiments.store.claims import SILENT_S, Claim, JobAlive, is_alive
from experiments.store.code_digests import loaded_science
from experiments.store.documents import AttemptRecord, Digests, End, Launch, Manifest, Record, Refusal, Request, Start
from experiments.store.journal import journal_sum
from experiments.store.paths import AttemptFolder, StepFolder
from experiments.store.step_folder import finish, is_current, new_attempt, retire
from experiments.store.typed_json import plain
from experiments.tracking.live import Forwarder
from maskgit_core.errors import ArtifactError, DiskFullError, MaskgitError
from maskgit_core.files import (
    DISK_FAILED,
    explain,
    read_json,
    sweep_leftovers,
    write_bytes,
    write_for_group,
    write_json,
)
from maskgit_core.training.meters import DivergedError

Inputs = Mapping[str, list[Input]]
DONE, FAILED, REFUSED, DISK_FULL, CONTINUE, STOPPED = 0, 1, 2, 74, 75, 143


def main(folder: str) -> int:
    """Runs the step in `folder`; safe to call any number of times."""
    return Job(Path(folder), job_alive()).run()


def clear_claim(folder: str, pid: int) -> None:
    """Called by whoever watched the process `pid` of a step being killed: nobody need wait for it."""
    Claim(Path(folder)).break_process(pid)


class Job:
    """One execution of a step, in one of its processes."""

    forwards = True

    def __init__(self, folder: Path, job_alive: JobAlive | None = None) -> None:
        self.folder = folder.absolute()
        self.step = StepFolder(self.folder)
        self.store = self.step.store
        write_for_group(self.store)
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.launch_id = os.environ.get("MASKGIT_LAUNCH_ID") or f"pid-{os.getpid()}-{time.time_ns()}"
        self.claim = Claim(self.folder, job_alive)
        self.stop = StopFlag.installed()

    def run(self) -> int:
        """Claims the step, runs its stage as a new attempt and publishes what it made."""
        try:
            request, launch = Request.needed(self.folder), Launch.needed(self.folder)
            sys.path.extend(p for p in launch.python_path if p not in sys.path)
            if self.step.cancelled.exists():
                say(f"{self.folder.name}: was cancelled; nothing to do", sys.stdout)
                return STOPPED
            inputs = load_inputs(self.store, request, launch)
            digests = input_manifests(inputs)
            if is_current(self.folder, digests):
                say(f"{self.folder.name}: already done", sys.stdout)
                return DONE
            number = self._begin(digests)
            if number is None:
                return DONE
        except MaskgitError as error:
            self.claim.release()
            say(f"error: {error}")
            self._note_refusal(error)
            return _code(error)
        except Stopped as stopped:
            return CONTINUE if stopped.requeue else STOPPED
        except Exception:
            self.claim.release()  # a process that lives on (inline, a test) must not be waited for
            raise
        forwarder = Forwarder.start(self.folder, launch) if self.rank == 0 and self.forwards else None
        try:
            with self.claim.kept_alive() if self.rank == 0 else contextlib.nullcontext():
                return self._attempt(number, request, launch, inputs, digests)
        finally:
            if self.rank == 0:
                self.claim.release()
            if forwarder is not None:
                forwarder.finish()

    # -- beginning -------------------------------------------------------------------------------------------------
    def _begin(self, inputs: Mapping[str, str]) -> int | None:
        """Rank 0 takes the claim and a number, the others wait to hear it; None where someone else finished it."""
        agreed = self.folder / "launches" / f"{self.launch_id}.json"
        if self.rank != 0:
            agreement = wait_for_file(agreed)
            number: int | None = agreement["attempt"]
            return number
        said = silent = False
        while (owner := self.claim.take()) is not None:
            if self.stop.is_set():
                raise Stopped(self.stop.wants_requeue)
            if not said:
                gone = "" if is_alive(owner) else f"; should it be gone: maskgit unlock {self.folder}"
                say(f"{self.folder.name}: waiting for {owner.where()}, which is running it{gone}", sys.stdout)
                said = True
            if not silent and self.claim.silent_s() > SILENT_S:
                since = duration(self.claim.silent_s())
                say(f"{self.folder.name}: no sign of life for {since}; if it is gone: maskgit unlock {self.folder}")
                silent = True
            time.sleep(0.5)
        if is_current(self.folder, inputs):
            self.claim.release()
            write_json(agreed, {"attempt": None})
            return None
        self._set_aside_old_work(inputs)
        attempts = (place for attempt in self.step.attempts() for place in (attempt.path, attempt.files))
        for place in (self.folder, self.folder / "launches", *attempts):
            sweep_leftovers(place, 0.0)  # the claim is ours: whoever wrote here is dead
        sweep_leftovers(self.step.parts)
        number = new_attempt(self.folder)
        write_json(agreed, {"attempt": number})
        return number

    def _set_aside_old_work(self, inputs: Mapping[str, str]) -> None:
        """A result made from other inputs is kept with its attempt; unfinished work from other inputs is dropped.

        Going on from a checkpoint or pieces made from an input that was rebuilt since would mix the two.
        """
        manifest = Manifest.read(self.folder)
        if manifest is not None:
            retire(self.folder, manifest)
        made_from = read_json(self.step.made_from)
        if self.step.made_from.exists() and made_from != dict(inputs):
            shutil.rmtree(self.step.parts, ignore_errors=True)
            for attempt in self.step.attempts():
                shutil.rmtree(attempt.checkpoints, ignore_errors=True)
        if made_from != dict(inputs):
            write_json(self.step.made_from, dict(inputs))

    # -- the work --------------------------------------------------------------------------------------------------
    def _attempt(self, number: int, request: Request, launch: Launch, inputs: Inputs, digests: Digests) -> int:
        try:
            attempt = self._new_attempt(number)
        except OSError as error:
            told = explain(error, self.folder)
            say(f"error: {told}")
            return _code(told)
        try:
            return self._execute(attempt, request, launch, inputs, digests)
        finally:
            with contextlib.suppress(OSError):  # a full disk: what was to be said about it has been said
                attempt.close()

    def _new_attempt(self, number: int) -> Attempt:
        return Attempt(self.folder, number, rank=self.rank, world_size=self.world_size, stop=self.stop)

    def _execute(self, attempt: Attempt, request: Request, launch: Launch, inputs: Inputs, digests: Digests) -> int:
        started = time.time()
        try:
            if attempt.is_main:
                self._write_start(attempt, launch, started)
            stage = importlib.import_module(request.module)
            with system_metrics(attempt) as metrics:
                stage.run(attempt, **arguments(request, launch, inputs))
            if attempt.is_main:
                self._publish(attempt, request, launch, digests, started, peak_memory_gb(metrics))
            return DONE
        except Stopped as stopped:
            return self._ended(attempt, "stopped", stopped.reason, CONTINUE if stopped.requeue else STOPPED)
        except SupersededError as error:
            say(f"error: {error}")
            return FAILED
        except MaskgitError as error:
            say(f"error: {error}")
            # a training that went wrong was asked for rightly
            return self._ended(
                attempt, "failed", str(error), FAILED if isinstance(error, DivergedError) else _code(error)
            )
        except KeyboardInterrupt:
            return self._ended(attempt, "stopped", "interrupted", STOPPED)
        except Exception as error:
            return self._crashed(attempt, error, inputs)

    def _crashed(self, attempt: Attempt, error: Exception, inputs: Inputs) -> int:
        told, trace = disk_trouble(error, self.folder), traceback.format_exc()
        if told is None and (changed := changed_input(inputs)) is not None:
            told = ArtifactError(f"{changed}; restore the file, or run again with --redo and that step's name")
        if told is not None:
            say(f"error: {told}")
            return self._ended(attempt, "failed", str(told), _code(told), trace)
        say(trace)
        return self._ended(attempt, "failed", _one_line(error), FAILED, trace)

    def _write_start(self, attempt: Attempt, launch: Launch, started: float) -> None:
        start = Start(
            time=started,
            attempt=attempt.number,
            owner=self.claim.owner(),
            world_size=self.world_size,
            resources=launch.resources,
            pipeline=launch.pipeline,
            launch=self.launch_id,
            code=provenance.code_state().brief(),
        )
        start.write(attempt.own)

    def _publish(
        self, attempt: Attempt, request: Request, launch: Launch, digests: Digests, started: float, peak_gb: float
    ) -> None:
        attempt.close()
        attempt.check_fence()
        manifest = Manifest.of_files(request, attempt.number, attempt.files, attempt.notes, digests, started=started)
        self._write_record(attempt, request, launch, started, manifest)
        End(state="done", time=manifest.time, reason="done", peak_memory_gb=round(peak_gb, 3)).write(attempt.own)
        if finish(self.folder, manifest):
            shutil.rmtree(attempt.checkpoints, ignore_errors=True)
            shutil.rmtree(attempt.parts, ignore_errors=True)
            shutil.rmtree(self.step.tasks, ignore_errors=True)
            attempt.forget_earlier_checkpoints()

    def _write_record(
        self, attempt: Attempt, request: Request, launch: Launch, started: float, manifest: Manifest
    ) -> None:
        code = provenance.code_state()
        if code.diff:
            write_bytes(self.folder / "code.diff", code.diff.encode())
        attempts = self.step.attempts()
        record = Record(
            request=request,
            launch=launch,
            code=code,
            science_files=loaded_science(launch.plugins),
            packages=provenance.packages(),
            machine=provenance.machine(),
            started=started,
            ended=manifest.time,
            attempts=tuple(_attempt_record(a) for a in attempts),
            notes=attempt.notes,
            digest=manifest.digest,
        )
        record.write(self.folder)

    def _ended(
        self, attempt: Attempt, state: Literal["failed", "stopped"], reason: str, code: int, trace: str | None = None
    ) -> int:
        if attempt.is_main or state == "failed":
            name = End.FILE if attempt.is_main else f"end-rank{attempt.rank}.json"
            end = End(state=state, reason=reason, code=code, traceback=trace, time=time.time())
            try:
                write_json(attempt.own / name, plain(end))
            except ArtifactError as error:  # a full disk must not hide why the stage ended
                if "disk is full" not in reason:  # else it was said
                    say(f"warning: {error}")
        return code

    def _note_refusal(self, error: MaskgitError) -> None:
        if self.rank == 0 and self.folder.is_dir():
            try:
                Refusal(reason=str(error), time=time.time()).write(self.folder)
            except ArtifactError:
                return


def _attempt_record(attempt: AttemptFolder) -> AttemptRecord:
    start, end = Start.read(attempt.path), End.read(attempt.path)
    return AttemptRecord(number=attempt.number, start=start, end=end, journal=journal_sum(attempt.journal))


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints to the log; a log on a full disk must not change how the step ends."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stderr, flush=True)


def disk_trouble(error: BaseException, folder: Path) -> ArtifactError | None:
    """The one-line form of an error whose cause is a full, read-only or failing disk; None for any other.

    Libraries wrap or swallow the error number (torch says "iostream error"), so the chain and the texts are looked at.
    """
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, OSError) and told.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, *DISK_FAILED):
            return explain(told, Path(told.filename or folder))
        if any(text in str(told) for text in ("iostream error", "PytorchStreamWriter", "No space left on device")):
            return explain(OSError(errno.ENOSPC, "No space left on device"), folder)
        told = told.__cause__ or told.__context__
    return None


def _code(error: MaskgitError) -> int:
    return DISK_FULL if isinstance(error, DiskFullError) else REFUSED


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
