"""`Attempt`: the interface between a stage and the system that runs it.

An attempt owns one folder below its step's and writes nowhere else but in `parts/`, so that a forgotten
process on a lost node can only write where nobody looks. Import-light: torch is asked only for the device.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from experiments.running.progress import Progress
from experiments.running.signals import StopFlag
from experiments.store.documents import DatasetUse, Headline, Notes
from experiments.store.journal import Journal
from experiments.store.paths import AttemptFolder, StepFolder
from experiments.store.typed_json import Options
from maskgit_core.errors import ArtifactError
from maskgit_core.files import publish, read_json

T = TypeVar("T")


class Stopped(BaseException):
    """A stage saved its state and ends early on request; `requeue` is true where it wants to be continued."""

    def __init__(self, requeue: bool, reason: str = "asked to stop; state saved") -> None:
        super().__init__("stopped on request")
        self.requeue, self.reason = requeue, reason


class SupersededError(ArtifactError):
    """A newer attempt of the same step exists; this one may publish nothing more."""


class Attempt:
    """One execution of a step.

    Args:
        folder: the step's folder.
        number: the fencing number; only the highest publishes.
        rank, world_size: of this process.
        stop: the flag raised by USR2, TERM or the time limit.
        share: name of a task that makes pieces for the step and neither logs nor publishes its result; it is the
            attempt of nobody, so it needs no number and cannot be superseded.
    """

    def __init__(
        self,
        folder: Path,
        number: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
        stop: StopFlag | None = None,
        share: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.number = number
        self.rank = rank
        self.world_size = world_size
        self.share = share
        step = StepFolder(self.folder)
        own = AttemptFolder(step.tasks / share) if share else step.attempt(number)
        self.own, self.files, self.checkpoints = own.path, own.files, own.checkpoints
        self.parts = step.parts
        for path in (self.files, self.checkpoints, self.parts):
            path.mkdir(parents=True, exist_ok=True)
        self._stop = stop or StopFlag()
        self.notes = Notes()  # what the stage stated so far
        self._journal = Journal(own.journal, attempt=number) if self.is_main else None

    # -- who and where ------------------------------------------------------------------------------------------
    @property
    def is_main(self) -> bool:
        """True in the process that writes: rank 0 of what is not a mere share."""
        return self.rank == 0 and self.share is None

    @cached_property
    def device(self) -> str:
        """`"cuda:0"`, ... or `"cpu"`: the device of this process, current from the first use on (`bind_device`)."""
        from maskgit_core.devices import bind_device

        return bind_device()

    # -- files ----------------------------------------------------------------------------------------------------
    def earlier_checkpoints(self) -> list[Path]:
        """Checkpoint folders of earlier attempts, newest first."""
        earlier = [a for a in reversed(StepFolder(self.folder).attempts()) if a.number < self.number]
        return [attempt.checkpoints for attempt in earlier if attempt.checkpoints.is_dir()]

    def forget_earlier_checkpoints(self) -> None:
        """Deletes earlier attempts' checkpoints; call it once this attempt has saved one of its own."""
        if self.is_main:
            for path in self.earlier_checkpoints():
                shutil.rmtree(path, ignore_errors=True)

    def publish(self, path: Path, write: Callable[[Path], object]) -> None:
        """Calls `write(temporary)` and renames the result to `path`, if no newer attempt exists.

        Raises:
            SupersededError: a newer attempt took over; nothing was published.
            ArtifactError: the disk is full or cannot be written.
        """
        self.check_fence()
        publish(Path(path), write)

    def check_fence(self) -> None:
        """Raises `SupersededError` where a newer attempt of this step exists.

        A share publishes nothing but pieces, under names that follow from what they are made from.
        """
        if self.share is not None:
            return
        newest = max((attempt.number for attempt in StepFolder(self.folder).attempts()), default=0)
        if newest > self.number:
            raise SupersededError(
                f"{self.folder}: attempt {self.number} was superseded by attempt {newest}; "
                "this process ends without publishing anything"
            )

    # -- reports -----------------------------------------------------------------------------------------------
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Appends metrics at optimizer step (or item count) `step` to the journal; never waits for a server."""
        if self._journal is not None:
            self._journal.log(metrics, step)

    def resumed_at(self, step: int) -> None:
        """States that this attempt continues from `step`: earlier attempts' points from there on no longer count."""
        if self._journal is not None:
            self._journal.resumed_at(step)

    def flush(self) -> None:
        """Puts what was logged so far on the disk; call it before publishing the state that a resume begins from."""
        if self._journal is not None:
            self._journal.flush(sync=True)

    def headline(self, name: str, value: float, protocol: Options | None = None) -> None:
        """The one number this step is known by, with the protocol that gives it its meaning."""
        self._note(headline=Headline(name=name, value=float(value), protocol=protocol))

    def fact(self, **facts: object) -> None:
        """Facts for downstream steps (plain data): codebook size, grid, number of classes."""
        self._note(facts={**self.notes.facts, **facts})

    def dataset(self, name: str, digest: str, path: str, context: str) -> None:
        """A dataset this step read; `context` is e.g. "training" or "reference"."""
        use = DatasetUse(name=name, digest=digest, path=str(path), context=context)
        self._note(datasets=(*self.notes.datasets, use))

    def show(self, path: Path) -> None:
        """Marks a small output (picture, table, page) that MLflow should have too."""
        self._note(shown=(*self.notes.shown, str(Path(path).relative_to(self.files))))

    def _note(self, **changed: Any) -> None:
        self.notes = replace(self.notes, **changed)
        if self.is_main:
            self.notes.write(self.own, durable=False)

    def progress(self, work: Iterable[object] | int, unit: str = "it", label: str = "") -> Progress:
        """A progress bar over an iterable or a total; iterate it, or call `.update(n)`."""
        return Progress(work, unit=unit, label=label, file=self.own / "progress.json" if self.is_main else None)

    # -- when to stop -------------------------------------------------------------------------------------------------
    @property
    def should_stop(self) -> bool:
        """True after USR2, TERM or shortly before the time limit: save, then call `stop()`."""
        return self._stop.is_set()

    def stop(self) -> NoReturn:
        """Ends this attempt after its state was saved; it goes on at the next run (or requeue).

        A process that stops because another rank was asked to has no wish of its own: it wants to go on.
        """
        raise Stopped(self._stop.wants_requeue or not self._stop.is_set())

    def pause(self, reason: str) -> NoReturn:
        """Ends this attempt, saved, where its request says so; it does not come back by itself."""
        raise Stopped(False, reason)

    def close(self) -> None:
        """Flushes the journal; called by the job, not by stages."""
        if self._journal is not None:
            self._journal.close()


def wait_for_file(path: Path, timeout_s: float = 600.0) -> Any:
    """The JSON in `path` once it is there; used by ranks that wait for what rank 0 decides."""
    deadline = time.monotonic() + timeout_s
    while (value := read_json(path)) is None:
        if time.monotonic() > deadline:
            raise ArtifactError(f"{path}: rank 0 did not write it within {timeout_s:.0f} s; see its log")
        time.sleep(0.05)
    return value


def iterate(attempt: Attempt, items: Iterable[T]) -> Iterator[T]:
    """Yields items until the attempt is asked to stop, then ends; for work published piece by piece."""
    for item in items:
        if attempt.should_stop:
            attempt.stop()
        yield item
