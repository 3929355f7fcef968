"""A worker of a search: takes over or begins a trial, trains and scores it, and again, until there is none left.

A launcher runs it like any call. It may be killed at any moment: its trial stays "running" without an owner, the next
worker takes it over, and the training goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from experiments.monitoring.queue import job_alive
from experiments.running import advance
from experiments.searching.request import SearchRecord, trials_graph
from experiments.searching.study import Study, TrialView
from experiments.searching.telling import search_ended, trial_failed
from experiments.searching.trial import (
    FailedTrialError,
    KilledStepError,
    StoppedTrialError,
    Trial,
    add_to_record,
)
from experiments.searching.trial_log import JOURNAL
from experiments.store.claims import Claim, Owner
from experiments.store.typed_json import Block
from launchers.calls import CONTINUE, DISK_FULL, STOPPED, LauncherProtocol
from launchers.inline import Launcher as InlineLauncher
from launchers.local import Launcher as LocalLauncher
from launchers.stop_requests import StopRequests
from maskgit_core.errors import DiskFullError, LaunchError, MaskgitError
from maskgit_core.files import process_start, read_json, write_for_group, write_json

CANCELLED = "cancelled"
_ENDS_WITHIN_S = 10.0
_KILLS = 3  # a step of a trial that is killed so often takes the trial with it
_FAILS = 3  # so many trials that failed, and none that gave a score, end the search


def main(folder: str, launcher: str = "local") -> int:
    """Works on the search in `folder`; exit codes as of any call (`launchers.calls`)."""
    return Worker(Path(folder), InlineLauncher() if launcher == "inline" else LocalLauncher()).run()


def clear_claims(folder: str, pid: int) -> None:
    """Called by whoever watched the worker `pid` being killed: nobody need wait for what it and its steps held.

    Its steps end with it, but their claims name a job that will run again and so counts as alive.
    """
    for place in Path(folder).glob("trials/*/"):
        owner = Claim(place).owner()
        if owner is not None and owner.pid == pid:
            for step in note_of(place).get("folders") or ():
                _clear_ended(Path(step))
        Claim(place).break_process(pid)
    for place in (Path(folder) / "asking", Path(folder) / "lock"):
        Claim(place).break_process(pid)


def _clear_ended(step: Path) -> None:
    """Breaks the claim of a process of this host that has ended, or ends within seconds."""
    owner = Claim(step).owner()
    if owner is None or owner.host != Owner.me().host:
        return
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while process_start(owner.pid) == owner.pid_start:
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    Claim(step).break_process(owner.pid)


def note_of(place: Path) -> Block:
    """A worker's notes on a trial; those that are damaged are none, as they can be made again."""
    note = read_json(place / "trial.json")
    if not isinstance(note, dict):
        return {}
    kinds = {"training": str, "folders": list, "kills": int, "ended": bool}
    return {key: value for key, value in note.items() if isinstance(value, kinds.get(key, object))}


def mark(folder: str, *rest: object) -> list[object]:
    """Plain data that changes as the search gets on."""
    place = Path(folder)
    notes = [note_of(path) for path in sorted(place.glob("trials/*/"))]
    trainings = [advance.mark(note["training"]) for note in notes if note.get("training") and not note.get("ended")]
    return [(place / JOURNAL).stat().st_size if (place / JOURNAL).exists() else 0, *trainings]


class Worker:
    """One worker.

    Args:
        folder: the search's folder.
        launcher: runs a trial's steps on this machine.
    """

    def __init__(self, folder: Path, launcher: LauncherProtocol) -> None:
        self.folder, self.launcher = folder.absolute(), launcher
        self.store = self.folder.parent.parent
        write_for_group(self.store)
        self.record = SearchRecord.needed(self.folder)
        self.search = self.record.search
        self._alive = job_alive()
        self.requests, self.wants_requeue = StopRequests(), False

    def run(self) -> int:
        """Works until no trial is left or it is asked to end."""
        sys.path.extend(p for p in self.record.python_path if p not in sys.path)
        if Path(self.record.started_in).is_dir():
            os.chdir(self.record.started_in)
        with self._listening():
            try:
                self.study = Study(self.folder, self.search, self._alive)
                while self.requests.noted is None:
                    if (self.folder / CANCELLED).exists():
                        print("the search was cancelled", flush=True)
                        return STOPPED[1]
                    with self._alone():
                        taken = self._take()
                    if taken is None:
                        search_ended(self.store, self.record, self.study)
                        return 0
                    self._work(*taken)
            except (StoppedTrialError, KeyboardInterrupt):
                pass
            except DiskFullError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                return DISK_FULL
        return CONTINUE if self.wants_requeue else STOPPED[1]

    # -- trials ---------------------------------------------------------------------------------------------------
    def _take(self) -> tuple[TrialView, Claim] | None:
        """A trial without a living owner, else a new one; None where there is neither."""
        self.record = SearchRecord.needed(self.folder)  # somebody may have asked for more trials
        known = self.study.trials()
        failed = [trial for trial in known if trial.state == "failed"]
        if len(failed) >= _FAILS and not any(trial.values for trial in known):
            raise LaunchError(f"search: {len(failed)} trials failed and none gave a score; {failed[-1].reason}")
        for trial in known:
            if trial.state == "running":
                claim = self._claim(trial.number)
                if claim.take() is None:
                    print(f"trial {trial.number} is taken over", flush=True)
                    return trial, claim
        if len(known) >= self.record.search.trials:
            return None
        number = self.study.ask()
        claim = self._claim(number)
        claim.take()
        return self.study.trials()[number], claim

    def _claim(self, number: int) -> Claim:
        place = self.folder / "trials" / f"{number:04d}"
        place.mkdir(parents=True, exist_ok=True)
        return Claim(place, self._alive)

    def _work(self, view: TrialView, claim: Claim) -> None:
        number = view.number
        try:
            with claim.kept_alive():
                self._run_trial(number, claim.folder)
        except StoppedTrialError:
            print(f"trial {number}: saved; another worker goes on with it", flush=True)
            raise
        except DiskFullError:
            raise
        except KilledStepError as error:
            self._killed(number, claim, str(error))
        except FailedTrialError as error:
            self._tell_failed(number, claim.folder, str(error))
        finally:
            claim.release()

    def _run_trial(self, number: int, place: Path) -> None:
        params = self.study.params(number)
        shown = ", ".join(f"{key}={value}" for key, value in params.items())
        dirs = [self.folder / name for name in self.record.config_dirs]
        try:
            graph = trials_graph(self.record, [params], dirs)
        except DiskFullError:
            raise
        except MaskgitError as error:
            raise FailedTrialError(str(error)) from None
        trial = Trial(self.record, graph, self.launcher)
        note = {**note_of(place), "number": number, "params": params,
                "training": str(trial.training) if trial.training else None,
                "folders": [str(node.folder) for node in graph.nodes.values()]}  # fmt: skip
        write_json(place / "trial.json", note)
        print(f"trial {number}: {shown}", flush=True)
        known = self.study.trials()[number].values
        for rung in self.record.rungs:
            value = known.get(rung)
            if value is None:
                with self._alone():
                    add_to_record(self.store, trial, {rung})
                value = trial.score(rung)
                if value != value:
                    raise FailedTrialError(f"{self.search.metric} is not a number after {rung} steps")
                self.study.report(number, rung, value)
                print(f"trial {number}: {self.search.metric} = {value:.6g} after {rung} steps", flush=True)
            is_last = rung == self.record.rungs[-1]
            if not is_last and not any(step > rung for step in known) and self.study.falls_behind(number, rung):
                self.study.tell(number, "pruned")
                write_json(place / "trial.json", {**note, "ended": True})
                print(f"trial {number}: ends here, it is not among the best of those scored at {rung}", flush=True)
                return
            if self.requests.noted is not None:
                raise StoppedTrialError
        self.study.tell(number, "done", value)
        write_json(place / "trial.json", {**note, "ended": True})

    def _killed(self, number: int, claim: Claim, told: str) -> None:
        """A step was killed: the job asks for more memory and tries again, up to a limit kept with the trial."""
        note = note_of(claim.folder)
        note["kills"] = note.get("kills", 0) + 1
        write_json(claim.folder / "trial.json", note)
        if note["kills"] >= _KILLS:
            self._tell_failed(number, claim.folder, f"{told}, {_KILLS} times")
            return
        print(f"trial {number}: {told}", flush=True)
        if "SLURM_JOB_ID" in os.environ:
            claim.release()
            os.kill(os.getpid(), signal.SIGKILL)  # as the step was; the job script decides what that means

    def _tell_failed(self, number: int, place: Path, why: str) -> None:
        self.study.tell(number, "failed", reason=why)
        write_json(place / "trial.json", {**note_of(place), "ended": True})
        print(f"trial {number} failed: {why}", flush=True)
        trial_failed(self.store, self.record, number, why)

    # -- alone and asked ------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One worker at a time begins trials and adds to the record."""
        place = self.folder / "asking"
        place.mkdir(exist_ok=True)
        claim = Claim(place, self._alive)
        while claim.take() is not None:
            if self.requests.noted is not None:
                raise StoppedTrialError
            time.sleep(0.1)
        try:
            yield
        finally:
            claim.release()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Remembers TERM and INT; USR2 is passed on as TERM, so that it reaches whatever launcher runs just now."""

        def passed_on(number: int, frame: FrameType | None) -> None:
            self.wants_requeue = True
            os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGUSR2, passed_on)
        try:
            with self.requests.listening():
                yield
        finally:
            signal.signal(signal.SIGUSR2, before)
