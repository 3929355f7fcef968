"""Paths of a step's folder and of its attempts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.store.documents import Manifest, Request


@dataclass(frozen=True)
class AttemptFolder:
    """Paths of one attempt: `attempts/NNNN/` of a step's folder."""

    path: Path

    @property
    def number(self) -> int:
        """The attempt's number."""
        return int(self.path.name)

    @property
    def files(self) -> Path:
        """Its outputs."""
        return self.path / "files"

    @property
    def checkpoints(self) -> Path:
        """Its checkpoints."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Its metrics."""
        return self.path / "journal.jsonl"

    @property
    def progress(self) -> Path:
        """How far it has come."""
        return self.path / "progress.json"

    @property
    def set_aside(self) -> bool:
        """True where it once finished the step and its result was set aside."""
        return (self.path / Manifest.FILE).exists()


@dataclass(frozen=True)
class StepFolder:
    """Paths of a step's folder."""

    path: Path

    @property
    def store(self) -> Path:
        """The store's root."""
        return self.path.parent.parent

    @property
    def manifest(self) -> Path:
        """The done mark."""
        return self.path / Manifest.FILE

    @property
    def request(self) -> Path:
        """The request."""
        return self.path / Request.FILE

    @property
    def made_from(self) -> Path:
        """Digests of the inputs that unfinished work was made from."""
        return self.path / "made_from.json"

    @property
    def cancelled(self) -> Path:
        """The cancel mark."""
        return self.path / "cancelled"

    @property
    def logs(self) -> Path:
        """The folder of its processes' logs."""
        return self.path / "logs"

    @property
    def parts(self) -> Path:
        """Pieces shared by attempts and processes."""
        return self.path / "parts"

    @property
    def tasks(self) -> Path:
        """Array tasks that make its pieces."""
        return self.path / "tasks"

    @property
    def files(self) -> Path:
        """A link to the finished attempt's outputs."""
        return self.path / "files"

    def attempt(self, number: int) -> AttemptFolder:
        """One attempt's folder."""
        return AttemptFolder(self.path / "attempts" / f"{number:04d}")

    def attempts(self) -> Sequence[AttemptFolder]:
        """Folders of all attempts, oldest first."""
        try:
            names = os.listdir(self.path / "attempts")
        except OSError:
            return []
        return [self.attempt(number) for number in sorted(int(name) for name in names if name.isdigit())]
