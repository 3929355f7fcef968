"""Parts of a DAG: `--until STEP`, `--from STEP`, `--only STEP`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments.config.checker import StepRequest
from maskgit_core.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Part:
    """The steps of a pipeline that are asked for, by name.

    `until`: these and all that they need. `since`: these and all that needs them. Both: what is between. `only`:
    these alone. What is needed from outside the part must be finished.
    """

    until: tuple[str, ...] = ()
    since: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def select(self, requests: Mapping[str, StepRequest]) -> tuple[set[str], set[str]]:
        """The steps asked for, and the steps from outside that they need, directly or not.

        Raises:
            ConfigError: a name that is no step of the pipeline, or options that exclude each other.
        """
        for option, names in (("--until", self.until), ("--from", self.since), ("--only", self.only)):
            for name in names:
                if name not in requests:
                    raise unknown_name(option, name, requests, "step")
        if self.only and (self.until or self.since):
            raise ConfigError("--only: excludes --until and --from; give one or the other")
        needs = {
            name: {n.step for several in request.needs.values() for n in several if not n.stored}
            for name, request in requests.items()
        }
        users = {name: {other for other, theirs in needs.items() if name in theirs} for name in needs}
        chosen = set(self.only) or set(requests)
        if self.until:
            chosen &= _closure(self.until, needs)
        if self.since:
            chosen &= _closure(self.since, users)
        if not chosen:
            raise ConfigError(
                f"--from {self.since[0]}: comes after --until {self.until[0]}, so no step is between them; swap them"
            )
        return chosen, _closure(chosen, needs) - chosen


def _closure(names: Iterable[str], edges: Mapping[str, set[str]]) -> set[str]:
    reached, todo = set(names), list(names)
    while todo:
        new = edges[todo.pop()] - reached
        reached |= new
        todo += new
    return reached
