"""One or several protocols of an evaluation, with each distinct feature network once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.config.specs import ExtractorSpec, Input
from experiments.evaluation.feature_pass import FeaturePass
from experiments.evaluation.set_scores import Settings
from experiments.running.attempt import Attempt
from experiments.store.typed_json import Block
from maskgit_core.errors import ConfigError


@dataclass(frozen=True)
class Measure:
    """A protocol of an evaluation: its name, feature network, settings, and the reference (None: the originals)."""

    protocol: str
    extractor: ExtractorSpec
    settings: Settings
    reference: Input | None


def counted(key: str, wanted: int | None, there: int) -> int:
    """How many images are measured: those asked for (None: all), or fewer where there are fewer, which is said."""
    if wanted is not None and wanted > there:
        print(f"warning: {key}: {wanted} asked for, {there} are there; {there} are used", file=sys.stderr, flush=True)
    return min(wanted or there, there)


def further_measures(
    extractors: Mapping[str, ExtractorSpec] | None,
    settings: Mapping[str, Mapping[str, object]] | None,
    references: Sequence[Input],
    *,
    needs_reference: bool,
) -> list[Measure]:
    """The protocols beside the first, each with the reference that was made under its name.

    Raises:
        ConfigError: settings without a network, a setting that does not exist, a protocol without its reference.
    """
    extractors, settings = extractors or {}, settings or {}
    if left := sorted({*settings} - {*extractors}):
        raise ConfigError(f"further_settings.{left[0]}: there is no further_extractors.{left[0]} to measure with")
    made = {str(r.facts.get("protocol")): r for r in references}
    measures = []
    for name, extractor in extractors.items():
        if needs_reference and name not in made:
            raise ConfigError(
                f"further_extractors.{name}: no reference made under protocol {name} is in needs; "
                f"add a reference_statistics step with protocol={name}"
            )
        measures.append(Measure(name, extractor, _settings(name, settings.get(name, {})), made.get(name)))
    return measures


def _settings(name: str, given: Mapping[str, object]) -> Settings:
    options: Block = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        return Settings(**options)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        raise ConfigError(f"further_settings.{name}: found {dict(given)}; it takes [{known}]") from None


@dataclass
class Network:
    """A feature network and the protocols that are measured with it, from one pass over each set."""

    features: FeaturePass
    measures: list[Measure]
    number: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """All that its protocols need of every image."""
        return tuple(dict.fromkeys(name for m in self.measures for name in m.settings.outputs))

    @property
    def mark(self) -> str:
        """Tells this network's tensors and blocks apart; empty for the first."""
        return f"network{self.number}-" if self.number else ""


def networks(attempt: Attempt, measures: Sequence[Measure]) -> list[Network]:
    """The distinct networks, loaded; refuses metrics that one cannot serve and references made with another.

    Raises:
        ConfigError, WeightsError: before anything is computed.
    """
    distinct: list[Network] = []
    for measure in measures:
        same = next((n for n in distinct if n.features.spec == measure.extractor), None)
        if same is None:
            distinct.append(same := Network(FeaturePass(attempt, measure.extractor), [], len(distinct)))
        same.measures.append(measure)
        measure.settings.check(same.features.network)
        if measure.reference is not None:
            same.features.check_reference(measure.reference)
    return distinct
