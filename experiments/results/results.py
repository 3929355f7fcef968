"""Finished evaluations of a store with everything one may filter, group and trace them by."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.config.schema.signatures import source_file
from experiments.store.code_digests import CodeNow
from experiments.store.documents import Manifest, Record, Start
from experiments.store.paths import StepFolder
from experiments.store.records import PipelineRecord, PipelineStep, effective_config, records
from experiments.store.scores import Score, read_scores
from experiments.store.typed_json import Options
from maskgit_core.errors import ConfigError, suggestion

KINDS = ("scores", "tokenizer_scores")
FILTER = re.compile(r"^\s*([A-Za-z_][\w./\[\]-]*)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*$")


@dataclass(frozen=True)
class Result:
    """A finished evaluation: its scores, the values that led to it, and where it came from."""

    run: str  # uid of the run
    name: str
    experiment: str
    step: str
    stage: str
    kind: str
    folder: Path
    fingerprint: str
    commit: str
    config: Mapping[str, str]  # dotted key -> value as text: own and upstream, as asked
    params: Options  # the sweep's values
    scores: tuple[Score, ...]
    upstream: tuple[Path, ...] = field(default=())  # folders of everything it was made from
    code: tuple[str, ...] = field(default=())  # `module digest` of code, own and upstream, that is not what it is now

    @property
    def old_code(self) -> tuple[str, ...]:
        """The modules that have changed since."""
        return tuple(dict.fromkeys(line.partition(" ")[0] for line in self.code))

    def score(self, key: str, protocol: str | None = None) -> Score | None:
        """The score with this key (`fid`, `fid/real_images`), if any; of the first protocol where none is named."""
        return next((s for s in self.scores if s.key == key and protocol in (None, s.protocol)), None)

    @property
    def seeds(self) -> dict[str, str]:
        """Its seeds: keys that end in `.seed`."""
        return {k: v for k, v in self.config.items() if k.endswith(".seed")}

    @property
    def without_seeds(self) -> tuple[tuple[str, str], ...]:
        """Config without the sweep's seeds: equal for runs that differ in nothing else."""
        swept = {k for k in self.params if k.endswith(".seed")}
        return tuple(sorted((k, v) for k, v in self.config.items() if k not in swept))

    def value(self, key: str) -> str | float | None:
        """The value for a filter: `experiment`, `step`, `stage`, `run`, a score, or a config key; else None."""
        fixed = {"experiment": self.experiment, "step": self.step, "stage": self.stage, "run": self.run}
        if key in fixed:
            return fixed[key]
        if (score := self.score(key)) is not None:
            return score.value
        return self.config.get(key)


@dataclass(frozen=True)
class Filter:
    """`key OP value` as people type it."""

    key: str
    operator: str
    wanted: str

    @classmethod
    def read(cls, text: str) -> Filter:
        """Raises `ConfigError` where `text` is no comparison."""
        match = FILTER.match(text)
        if match is None:
            raise ConfigError(f"{text}: is no filter; write key=value, key!=value, key<value, key>value, key<=, key>=")
        return cls(*match.groups())

    def matches(self, result: Result) -> bool:
        """Numbers compare as numbers (`1e-4` is `0.0001`), everything else as text."""
        value = result.value(self.key)
        if value is None:
            return False
        a, b = _number(value), _number(self.wanted)
        if a is not None and b is not None:
            return {"=": a == b, "!=": a != b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[self.operator]
        if self.operator in ("=", "!="):
            return (str(value) == self.wanted) == (self.operator == "=")
        raise ConfigError(f"{self.key}: {value!r} and {self.wanted!r} have no order; use = or !=")


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def collect(store: Path, kinds: Sequence[str] = KINDS, experiment: str | None = None) -> list[Result]:
    """All finished evaluations, newest execution first, each step once."""
    by_step: dict[str, Result] = {}
    code = CodeNow(source_file)
    for record in records(store):
        if experiment is not None and record.experiment != experiment:
            continue
        for entry in record.steps:
            key = f"{record.experiment}/{entry.fingerprint}"
            if entry.kind not in kinds:
                continue
            if key not in by_step and (result := _result(store, record, entry, code)):
                by_step[key] = result
            elif key in by_step and len(entry.params) < len(by_step[key].params):
                by_step[key] = replace(by_step[key], params=entry.params)  # also run on its own
    return list(by_step.values())


def _result(store: Path, record: PipelineRecord, entry: PipelineStep, code: CodeNow) -> Result | None:
    folder = store / entry.folder
    manifest = Manifest.read(folder)
    if manifest is None:
        return None
    config, upstream = effective_config(store, record, entry)
    attempt = StepFolder(folder).attempt(manifest.attempt)
    start = Start.read(attempt.path)
    return Result(
        run=f"{(start.pipeline if start else None) or record.uid}/{entry.name}",
        name=entry.name,
        experiment=record.experiment,
        step=entry.step,
        stage=entry.stage,
        kind=entry.kind,
        folder=folder,
        fingerprint=entry.fingerprint,
        commit=(start.code if start and start.code.commit else record.code).commit or "",
        config=config,
        params=entry.params,
        scores=tuple(read_scores(attempt.files, manifest.headline)),
        upstream=tuple(upstream),
        code=tuple(sorted({line for place in (folder, *upstream) for line in _other_code(place, code)})),
    )


def _other_code(folder: Path, code: CodeNow) -> list[str]:
    """The modules that made a step and have changed since, each with the digest it had."""
    record = Record.read(folder)
    science = record.science_files if record else {}
    return [f"{name} {science[name] if isinstance(science[name], str) else science[name]['code']}"
            for name in code.changed(science)]  # fmt: skip


def select(results: Iterable[Result], filters: Sequence[Filter]) -> list[Result]:
    """The results that match all filters.

    Raises:
        ConfigError: a filter names a key that no result has.
    """
    chosen = list(results)
    for one in filters:
        if chosen and all(r.value(one.key) is None for r in chosen):
            known = sorted({k for r in chosen for k in (*r.config, *(s.key for s in r.scores), "experiment", "step")})
            raise ConfigError(
                f"{one.key}: no result has this key; {suggestion(one.key, known)}One of [{', '.join(known[:40])}]"
            )
        chosen = [r for r in chosen if one.matches(r)]
    return chosen


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over seeds."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; one alone has no deviation."""
        std = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
        return cls(statistics.fmean(values), std, len(values))

    def text(self, digits: int = 4) -> str:
        """`6.18`, or `6.18 ± 0.05` with `digits` significant digits of the mean."""
        decimals = 0 if self.mean == 0 else max(0, digits - 1 - math.floor(math.log10(abs(self.mean))))
        return self.fixed(min(decimals, 6))

    def fixed(self, decimals: int) -> str:
        """With so many decimals."""
        return f"{self.mean:.{decimals}f}" + (f" ± {self.std:.{decimals}f}" if self.std is not None else "")


def by_seed(results: Iterable[Result]) -> list[list[Result]]:
    """Results grouped so that those of one group differ only in the sweep's seeds and were made by the same code."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.experiment, result.step, result.code, *result.without_seeds), []).append(result)
    return list(groups.values())
