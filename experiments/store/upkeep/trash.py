"""The trash: `<store>/.trash/<time>-<random>/<stage>/<step>`, from where steps can be restored for a week."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

from experiments.store.claims import Claim, JobAlive, Owner
from maskgit_core.errors import ArtifactError, unknown_name
from maskgit_core.files import explain

KEPT_S = 7 * 86400.0


class Trash:
    """The trash of one store."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.place = store / ".trash"
        self._batch = self.place / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"

    def put(self, folder: Path, job_alive: JobAlive | None = None) -> bool:
        """Moves a step's folder (or one of `slurm/`, `code/`) here; False where somebody executes the step.

        Raises:
            ArtifactError: the disk refuses.
        """
        claim = Claim(folder, job_alive)
        target = self._batch / folder.relative_to(self.store)
        try:
            if claim.take() is not None:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, target)
        except FileNotFoundError:
            return False  # somebody else moved it
        except OSError as error:
            claim.release()
            raise explain(error, target) from error
        (target / Owner.FILE).unlink(missing_ok=True)
        return True

    def take_back(self, folder: Path) -> None:
        """Undoes `put` of this trash."""
        os.rename(self._batch / folder.relative_to(self.store), folder)

    def restore(self, name: str) -> list[Path]:
        """Moves all that is called `name` (a folder's name, or stage/name) back; returns where it is now.

        Raises:
            ConfigError: nothing here has this name. ArtifactError: its place is taken.
        """
        held = {path: path.relative_to(batch) for batch in self._batches() for path in sorted(batch.glob("*/*"))}
        chosen = [path for path, inner in held.items() if name in (inner.name, inner.as_posix())]
        if not chosen:
            raise unknown_name("--restore", name, {inner.as_posix() for inner in held.values()}, "folder in the trash")
        restored = []
        for path in chosen:
            target = self.store / held[path]
            if target.exists():
                raise ArtifactError(f"{target}: exists again; move it away first, or leave {name} in the trash")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            restored.append(target)
        return restored

    def empty(self) -> tuple[int, int]:
        """Deletes what has been here for a week: bytes freed, and bytes still kept."""
        freed = kept = 0
        for batch in self._batches():
            if time.time() - batch.stat().st_mtime < KEPT_S:
                kept += held_bytes(batch)
            else:
                freed += held_bytes(batch)
                shutil.rmtree(batch, ignore_errors=True)
        return freed, kept

    def _batches(self) -> list[Path]:
        return sorted(path for path in self.place.glob("*") if path.is_dir())


def held_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
