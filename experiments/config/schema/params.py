"""Keys of a config as data: type hints, marks and defaults, as read from signatures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.store.typed_json import Block

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


@dataclass(frozen=True)
class Hint:
    """A type hint as data.

    `form` is a scalar's name, `none`, `literal`, `union`, `tuple`, `list`, `dict`, `spec` or `input`.
    """

    form: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.form == "literal":
            return "one of [" + ", ".join(map(str, self.args)) + "]"
        if self.form == "union":
            return " or ".join(map(str, self.args))
        if self.form in ("tuple", "list"):
            return f"{self.form} of " + ", ".join("..." if a is Ellipsis else str(a) for a in self.args)
        if self.form == "spec":
            return f"a {self.args[0].lower()} (a mapping with `name`)"
        return {"none": "null", "dict": "mapping", "input": "artifact"}.get(self.form, self.form)


@dataclass(frozen=True)
class Param:
    """One keyword of a signature."""

    name: str
    hint: Hint
    default: object = MISSING
    marks: frozenset[str] = frozenset()
    kind: str | None = None  # artifact kind, for inputs
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    divides: str | None = None  # another parameter
    neutral: object = MISSING
    revision: int | None = None  # the meaning of its values changed ...
    unrevised: tuple[object, ...] = ()  # ... but for these
    unused_if: tuple[str, object] | None = None  # another parameter and its value with which this one does nothing
    group: str = ""  # the stage's parameter whose dataclass has this field

    @property
    def required(self) -> bool:
        """True where there is no default."""
        return self.default is MISSING

    def forms(self) -> set[str]:
        """The outermost forms the hint allows."""
        return {h.form for h in self.hint.args} if self.hint.form == "union" else {self.hint.form}

    @property
    def base(self) -> str:
        """The class of the component that this is (`Model`); empty where it is none."""
        hints = self.hint.args if self.hint.form == "union" else (self.hint,)
        return next((str(h.args[0]) for h in hints if h.form == "spec"), "")

    def entry(self) -> Param | None:
        """One entry's parameter where this is a mapping of names to components (`dict[str, ExtractorSpec]`)."""
        for hint in self.hint.args if self.hint.form == "union" else (self.hint,):
            if hint.form == "dict" and hint.args and hint.args[0].form == "spec":
                return replace(self, hint=hint.args[0])
        return None


@dataclass(frozen=True)
class Signature:
    """The keyword-only parameters of a component's constructor or of a stage's `run`, and the module's constants."""

    module: str
    path: Path
    params: dict[str, Param]
    constants: Block = field(default_factory=dict)
    groups: dict[str, tuple[str, str]] = field(default_factory=dict)  # parameter -> module and name of its dataclass
