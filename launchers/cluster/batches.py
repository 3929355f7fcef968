"""From calls to SLURM jobs: which calls form one array, and what each element waits for. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launchers.calls import Call, Resources, topological


@dataclass(frozen=True)
class Batch:
    """Calls submitted by one sbatch: one task for each entry, each with one call or several (packed).

    `number` orders batches so that what one needs comes earlier.
    """

    number: int
    group: str
    resources: Resources
    tasks: tuple[tuple[Call, ...], ...]

    @property
    def is_array(self) -> bool:
        """True where the job has elements; a single task is a plain job."""
        return len(self.tasks) > 1

    def job(self, job_id: str, index: int) -> str:
        """The id of a task's job."""
        return f"{job_id}_{index}" if self.is_array else job_id


def make_batches(calls: Iterable[Call], max_array_size: int) -> list[Batch]:
    """Groups calls of the same group, resources and depth into arrays of at most `max_array_size` tasks."""
    ordered = topological(calls)
    depth: dict[str, int] = {}
    for call in ordered:
        depth[call.key] = 1 + max((depth[need] for need in (*call.needs, *call.after) if need in depth), default=-1)
    grouped: dict[tuple[int, str, Resources], list[Call]] = {}
    for call in ordered:
        grouped.setdefault((depth[call.key], call.group or call.key, call.resources), []).append(call)
    batches: list[Batch] = []
    for (_, group, resources), members in sorted(grouped.items(), key=lambda entry: entry[0][0]):
        members = _in_order_of_needs(members, batches)
        tasks = [tuple(members[i : i + resources.pack]) for i in range(0, len(members), resources.pack)]
        for start in range(0, len(tasks), max_array_size):
            batches.append(Batch(len(batches), group, resources, tuple(tasks[start : start + max_array_size])))
    return batches


def _in_order_of_needs(members: list[Call], batches: Sequence[Batch]) -> list[Call]:
    """Sorts calls by the place of what they need, so that element i often needs just element i of another array."""
    place = {
        call.key: (batch.number, index, inner)
        for batch in batches
        for index, task in enumerate(batch.tasks)
        for inner, call in enumerate(task)
    }
    return sorted(members, key=lambda call: max((place[n] for n in call.needs if n in place), default=(-1, -1, -1)))


@dataclass(frozen=True)
class Waits:
    """The dependencies of a task: the links (job ids) of each task it needs; any link that ends well will do.

    Args:
        well: of tasks that must end well.
        ended: of tasks that must only have ended; the call checks by itself what they left.
    """

    well: tuple[tuple[str, ...], ...] = ()
    ended: tuple[tuple[str, ...], ...] = ()

    def expression(self) -> str:
        """As sbatch and scontrol take it; empty where there is nothing to wait for.

        SLURM knows either "all of" (,) or "any of" (?), not both in one expression: with several chains of jobs the
        task waits for the last link of each to end.
        """
        chains = [links for links in self.well if len(links) > 1]
        if chains and len(self.well) == 1 and not self.ended:
            return "?".join(f"afterok:{link}" for link in chains[0])
        parts = [f"afterok:{links[0]}" for links in self.well if len(links) == 1]
        parts += [f"afterany:{links[-1]}" for links in (*self.ended, *chains)]
        return ",".join(parts)


@dataclass
class Submitted:
    """Job ids of what has been submitted so far: a task's links, by the keys of its calls."""

    links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)  # keys of calls packed with others

    def add(self, batch: Batch, job_ids: Sequence[str]) -> None:
        """Takes in a submitted batch; several ids form a chain."""
        for index, task in enumerate(batch.tasks):
            for call in task:
                self.links[call.key] = tuple(batch.job(job_id, index) for job_id in job_ids)
                if len(task) > 1:
                    self.shared.add(call.key)

    def array_links(self, batches: Iterable[Batch]) -> list[tuple[str, ...]]:
        """Ids of whole arrays, link by link."""
        links = [self.links[batch.tasks[0][0].key] for batch in batches]
        return [tuple(job.partition("_")[0] for job in jobs) for jobs in links]

    def waits(self, task: Sequence[Call], before: Iterable[tuple[str, ...]] = ()) -> Waits:
        """The dependencies of a task. A packed task tries all its calls, whatever became of some of their needs.

        Args:
            before: ids of arrays that must have ended besides.
        """
        well: dict[tuple[str, ...], None] = {}
        ended: dict[tuple[str, ...], None] = dict.fromkeys(before)
        for call in task:
            for need in call.needs:
                if need in self.links:
                    loose = len(task) > 1 or need in self.shared
                    (ended if loose else well)[self.links[need]] = None
            ended |= {self.links[key]: None for key in call.after if key in self.links}
        return Waits(tuple(well), tuple(ended))


def array_dependency(batch: Batch, waits: Sequence[Waits], sizes: Mapping[str, int]) -> str | None:
    """One expression for all elements, or None where each needs its own.

    `aftercorr` pairs elements by index; it is right where element i waits for element i of an array of the same size.

    Args:
        waits: of each task of the batch.
        sizes: array id -> number of its elements.
    """
    if len(set(waits)) == 1:
        return waits[0].expression()
    if any(wait.ended or any(len(links) > 1 for links in wait.well) for wait in waits):
        return None
    common = set.intersection(*({links[0] for links in wait.well} for wait in waits))
    arrays: set[str] = set()
    for index, wait in enumerate(waits):
        own = {links[0] for links in wait.well} - common
        bases = {job.partition("_")[0] for job in own}
        if any(job != f"{job.partition('_')[0]}_{index}" for job in own):
            return None
        if index and bases != arrays:
            return None
        arrays = bases
    if any(sizes.get(base) != len(batch.tasks) for base in arrays):
        return None
    parts = [f"afterok:{job}" for job in sorted(common)] + [f"aftercorr:{base}" for base in sorted(arrays)]
    return ",".join(parts)


def waves(batches: Sequence[Batch], at_once: int) -> list[list[Batch]]:
    """Batches that may run at the same time, so that at most `at_once` tasks of all of them do.

    SLURM's own limit (`%`) counts each array for itself, and a task cannot wait for one of an array that waits for its
    own (a circle, to SLURM); so a wave waits for the end of the one before it.
    """
    grouped: list[list[Batch]] = []
    room = 0
    for batch in batches:
        size = min(len(batch.tasks), at_once)
        if size > room:
            grouped.append([])
            room = at_once
        grouped[-1].append(batch)
        room -= size
    return grouped
