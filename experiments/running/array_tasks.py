"""One of several independent tasks that make a step's pieces, each its share, before the step itself is finished.

A stage with `PIECEWISE = True` cuts its work into pieces, publishes each by renaming and passes over those that
are there; its processes never talk to each other. Such a step may be cut into `resources.num_tasks` tasks that come and
go as the cluster has room. They hold no claim and no attempt: whatever becomes of them, the step's own job, which comes
after, makes what is missing and alone publishes the result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from experiments.monitoring.queue import job_alive
from experiments.running.attempt import Attempt, Stopped
from experiments.running.job import Job
from experiments.store.claims import Claim, JobAlive
from maskgit_core.files import read_json


def main(folder: str, index: int, count: int) -> int:
    """Makes the pieces of task `index` of `count` of the step in `folder`; returns an exit code, as a job does."""
    return ArrayTask(Path(folder), index, count, job_alive()).run()


class ArrayTask(Job):
    """One of `count` independent tasks of a step, in one of its processes.

    Args:
        folder: the step's.
        index, count: number of this task and of all; each may have several processes.
    """

    forwards = False

    def __init__(self, folder: Path, index: int, count: int, job_alive: JobAlive | None = None) -> None:
        super().__init__(folder, job_alive)
        self._job_alive = job_alive
        self.index, self.count = index, count

    def _begin(self, inputs: Mapping[str, str]) -> int | None:
        """Drops pieces made from other inputs, unless someone is executing the step, who has done so."""
        if self.claim.live_owner() is None and not self._is_fresh(inputs):
            self.step.tasks.mkdir(parents=True, exist_ok=True)
            turn = Claim(self.step.tasks, self._job_alive)
            while turn.take() is not None:
                if self.stop.is_set():
                    raise Stopped(self.stop.wants_requeue)
                time.sleep(0.1)
            try:
                if not self._is_fresh(inputs):
                    self._set_aside_old_work(inputs)
            finally:
                turn.release()
        return 0

    def _is_fresh(self, inputs: Mapping[str, str]) -> bool:
        """True where nothing in the step's folder was made from other inputs."""
        return read_json(self.step.made_from) == dict(inputs) and not self.step.manifest.exists()

    def _new_attempt(self, number: int) -> Attempt:
        return Attempt(
            self.folder,
            rank=self.index * self.world_size + self.rank,
            world_size=self.count * self.world_size,
            stop=self.stop,
            share=f"{self.index:04d}.{self.rank}",
        )
