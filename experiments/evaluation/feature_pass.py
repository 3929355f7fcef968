"""Passing sets of images through a feature network, and the rows of a score file; shared by the evaluating stages."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from experiments.config.specs import ExtractorSpec, Input
from experiments.running.attempt import Attempt
from experiments.store.paths import StepFolder
from experiments.store.typed_json import Block
from maskgit_core.errors import ConfigError
from maskgit_core.evaluation.blocks import Blocks
from maskgit_core.evaluation.features import describe_extractor, extract
from maskgit_core.files import write_json


def blocks_of(attempt: Attempt, name: str, count: int, *inputs: Input | None) -> Blocks:
    """Blocks in the attempt's shared parts; a rebuilt input never meets the blocks made from its predecessor."""
    made_from = hashlib.sha256()
    for entry in inputs:
        made_from.update(b"-" if entry is None else StepFolder(entry.folder).manifest.read_bytes())
    return Blocks(
        attempt.parts / made_from.hexdigest()[:12],
        name,
        count,
        attempt.publish,
        rank=attempt.rank,
        world_size=attempt.world_size,
        should_stop=lambda: attempt.should_stop,
    )


@dataclass
class FeaturePass:
    """A feature network on the attempt's device, and the block files of the sets that went through it."""

    attempt: Attempt
    spec: ExtractorSpec
    network: Any = None
    passed: list[Blocks] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.spec.build().to(self.attempt.device)

    @property
    def about(self) -> dict[str, object]:
        """The extractor's part of a protocol."""
        return describe_extractor(self.spec.name, dict(self.spec.options), self.network)

    def check_reference(self, reference: Input) -> None:
        """Refuses a reference that was made with another network or preprocessing.

        Raises:
            ConfigError: the reference was made with another extractor; numbers would mean nothing.
        """
        theirs = reference.facts.get("extractor")
        if theirs != self.about:
            differing = [k for k, v in self.about.items() if not isinstance(theirs, dict) or theirs.get(k) != v]
            raise ConfigError(
                f"extractor: {', '.join(differing)} differ(s) from what {reference.name} was made with; "
                "use one extractor for both"
            )

    def extract(
        self,
        name: str,
        count: int,
        read: Callable[[range], Tensor],
        *inputs: Input | None,
        wanted: Sequence[str] = ("features",),
        label: str = "",
    ) -> Blocks:
        """This rank's share of a set's features; `read(items)` gives uint8 images BCHW. Rank 0 waits for the others."""
        blocks = blocks_of(self.attempt, name, count, *inputs)
        with self.attempt.progress(count, unit="image", label=label or name) as progress:
            for done in extract(blocks, read, self.network, self.attempt.device, wanted):
                progress.update(done)
        self.passed.append(blocks)
        finish(self.attempt, blocks)
        return blocks


def finish(attempt: Attempt, blocks: Blocks) -> None:
    """Rank 0 waits for every block; where a stop was asked for, what is done stays and the attempt ends."""
    if attempt.should_stop or (attempt.is_main and not blocks.wait()):
        attempt.stop()


class Scores:
    """The rows of `scores.json`: a number always comes with its subject, the number of images and its protocol."""

    def __init__(self, protocol_name: str, protocol: dict[str, object]) -> None:
        self.protocol_name, self.protocol = protocol_name, protocol
        self.rows: list[Block] = []

    def add(self, name: str, of: str, value: float, num_images: int, **more: object) -> None:
        """One number: a metric's name, what was measured, the value and the count it depends on."""
        row = {"name": name, "of": of, "value": value, "num_images": num_images, "protocol": self.protocol_name}
        self.rows.append({**row, **more})

    def value(self, name: str, of: str) -> float | None:
        """The value of a row, or None."""
        return next((r["value"] for r in self.rows if r["name"] == name and r["of"] == of), None)

    def logged(self, subject: str, prefix: str = "") -> dict[str, float]:
        """Finite values for the journal: `fid` of the subject, `fid/real_images` of anything else."""
        named = {
            r["name"] if r["of"] == subject else f"{r['name']}/{r['of'].replace(' ', '_')}": float(r["value"])
            for r in self.rows
        }
        return {f"{prefix}{name}": value for name, value in named.items() if math.isfinite(value)}


def publish_scores(attempt: Attempt, by_protocol: Sequence[Scores], subject: str, headline: str, step: int) -> None:
    """Writes `scores.json` (the rows of every protocol and what each means), logs them, and states the headline.

    Args:
        by_protocol: one for each protocol; the first is the one the step is known by, the logged names of the others
            begin with their protocol's.
        subject: what the metrics are of, for instance `samples`.
        headline: name of the headline metric.
        step: of the journal's points.
    """
    first = by_protocol[0]
    rows = [row for scores in by_protocol for row in scores.rows]
    write_json(
        attempt.files / "scores.json", {"scores": rows, "protocols": {s.protocol_name: s.protocol for s in by_protocol}}
    )
    logged = first.logged(subject)
    for scores in by_protocol[1:]:
        logged |= scores.logged(subject, f"{scores.protocol_name}/")
    attempt.log(logged, step=step)
    told = {"name": first.protocol_name, **first.protocol}
    attempt.headline(headline, first.value(headline, subject) or 0.0, protocol=told)
