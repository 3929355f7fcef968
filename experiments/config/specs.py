"""Arguments of a stage: component specs and upstream artifacts.

A stage names these classes in the hints of its `run` function; the checker (`experiments/config/checker.py`) reads
the hints from source and passes the objects. Import-light: building a component imports its file, nothing else does.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from experiments.store.typed_json import Block, Options
from maskgit_core.models import present_module


@dataclass(frozen=True)
class Spec:
    """A component by name with its checked options: `name: halton` is `samplers/halton.py`, class `Sampler`."""

    folder: ClassVar[str] = ""
    class_name: ClassVar[str] = ""

    name: str
    options: Options = field(default_factory=dict)
    module: str = ""  # dotted module; empty: the one in maskgit_core

    def load(self) -> type:
        """The component's class (imports its file)."""
        module = self.module or f"maskgit_core.{self.folder}.{self.name.replace('/', '.')}"
        loaded: type = getattr(importlib.import_module(present_module(module)), self.class_name)
        return loaded

    def build(self, **facts: object) -> Any:
        """The component, from its options and the derived `facts` that the config may not set."""
        return self.load()(**self.options, **facts)

    def with_options(self, **changed: object) -> Spec:
        """The same component with some options replaced."""
        return type(self)(name=self.name, options={**self.options, **changed}, module=self.module)

    def to_dict(self) -> Block:
        """Plain data: `{"name": ..., option: value, ...}`."""
        return {"name": self.name, **self.options}


class TokenizerSpec(Spec):
    """Config of a tokenizer: `.build()` gives an object with `encode`, `decode`, `codebook_size`."""

    folder, class_name = "tokenizers", "Tokenizer"


class ModelSpec(Spec):
    """Config of a transformer: `.build(codebook_size=, num_tokens=, num_classes=)`."""

    folder, class_name = "models", "Model"


class SamplerSpec(Spec):
    """Config of a sampler: `.build()`."""

    folder, class_name = "samplers", "Sampler"


class DatasetSpec(Spec):
    """Config of a dataset: `.build()` gives a sequence of `Sample(key, image, label)`."""

    folder, class_name = "datasets", "Dataset"


class ExtractorSpec(Spec):
    """Config of a feature network: `.build()`."""

    folder, class_name = "extractors", "Extractor"


class MetricSpec(Spec):
    """Config of a metric: `.build()`."""

    folder, class_name = "metrics", "Metric"


SPECS: dict[str, type[Spec]] = {
    cls.__name__: cls for cls in (TokenizerSpec, ModelSpec, SamplerSpec, DatasetSpec, ExtractorSpec, MetricSpec)
}


@dataclass(frozen=True)
class Input:
    """The finished artifact of an upstream step."""

    name: str  # the step's name in the pipeline
    kind: str
    folder: Path  # the step's folder (journal, record, attempts)
    fingerprint: str
    facts: Options  # what the upstream stage stated with `attempt.fact(...)`
    config: Options  # the upstream step's config, as asked
    params: Options = field(default_factory=dict)  # the sweep's values that lead to it

    @property
    def files(self) -> Path:
        """The folder of its output files."""
        return self.folder / "files"
