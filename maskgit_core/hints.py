"""Type hints that carry meaning for the config checker (`experiments/config/checker.py`).

A component is a class with keyword-only arguments; its signature *is* the config schema. The checker reads it
from source and understands scalars (`int float bool str`), `Literal[...]`, `X | None`, `tuple[...]`,
`list[...]`, `dict[str, X]`, nested components and the marks below. To Python and mypy the marks are
plain `Annotated` types and cost nothing.

    def __init__(self, *,
                 codebook_size: Derived[int],                       # a fact: never set in a config
                 dim: Annotated[int, Range(1, 8192)] = 768,         # checked
                 num_workers: Execution[int] = 2,                   # how it runs: not in the fingerprint
                 root: Content[str],                                # a path: its content counts, not its name
                 weights: Weights[str | None] = None,               # a registry name or a file: its sha256 counts
                 qk_norm: Annotated[bool, Neutral(False)] = False,  # added later: False re-addresses nothing
                 top_k: Annotated[int | None, Revised(2, unless=(None,))] = None,  # numbers mean something else now
                 )
"""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

T = TypeVar("T")

#: A fact found from data, tokenizer or hardware when the object is built; the config may not set it.
Derived = Annotated[T, "derived"]
#: Says how something runs, never what comes out; left out of fingerprints.
Execution = Annotated[T, "execution"]
#: A path (or a list of paths, the first that exists counts); the content enters the fingerprint, the name does not.
Content = Annotated[T, "content"]
#: A name in the weights registry or a path; the file's sha256 enters the fingerprint.
Weights = Annotated[T, "weights"]


@dataclass(frozen=True)
class Range:
    """Closed interval of allowed numbers; `None`: no limit there. `low_open`, `high_open` exclude the limit itself."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False


@dataclass(frozen=True)
class Divides:
    """Another option of the same component, which this number must divide."""

    name: str


@dataclass(frozen=True)
class Neutral:
    """The value under which an option added later is left out of the fingerprint (the old behaviour)."""

    value: Any


@dataclass(frozen=True)
class Revised:
    """An option whose values mean something else since this revision, but for those in `unless`.

    Such a value enters the fingerprint together with the revision, so that what was made under the old meaning is not
    taken for what the new one gives; everything else keeps its fingerprint.
    """

    number: int
    unless: tuple[Any, ...] = ()


@dataclass(frozen=True)
class UnusedIf:
    """Where another option has this value, this one is not looked at: it needs nothing and counts for nothing."""

    option: str
    value: Any


@dataclass(frozen=True)
class Kind:
    """The kind of artifact a stage's input must be."""

    name: str
