"""JSON documents as frozen dataclasses, checked against the dataclass's type hints.

Hints may be `str`, `int`, `float` (an integer is accepted), `bool`, `None`, `object` and `Any` (anything), `X | None`,
`Literal`, `tuple[X, ...]`, `Mapping[str, X]` and other dataclasses. Unknown keys are ignored, so that documents written
by a later release can be read; a missing key takes the field's default.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from maskgit_core.errors import ArtifactError
from maskgit_core.files import create_exclusively, open_file, write_json

#: Free-form plain data by (dotted) key: options of a stage or component, facts, settings. Signatures are their schema.
Options = Mapping[str, Any]
#: The same while it is being made.
Block = dict[str, Any]
T = TypeVar("T")
#: Metadata of a field that is left out of the file where it has its default.
OPTIONAL = {"optional": True}
#: Takes a JSON value and its key; returns the typed value or raises `ValueError` that begins with the key.
Parser = Callable[[object, str], Any]

MAX_BYTES = 256 * 1024 * 1024


class MalformedError(ValueError):
    """A JSON value is not what its type hint allows; the text names the key."""


def load(path: Path) -> object:
    """The JSON value in a file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        MalformedError: it is not one whole JSON value in UTF-8 with finite numbers, or larger than `MAX_BYTES`.
    """
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise MalformedError(f"has more than {MAX_BYTES} bytes")
            data = file.read()  # a limit given here would be allocated each time
    except IsADirectoryError:
        raise MalformedError(f"is {'a folder' if path.is_dir() else 'a pipe or device'}, not a file") from None
    except FileNotFoundError:
        if path.is_symlink():
            raise MalformedError("is a link to nothing") from None
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MalformedError("is a link to itself") from None
        raise
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise MalformedError("is nested too deeply") from None
    except ValueError as error:  # JSON, UTF-8, or a number with too many digits
        raise MalformedError(f"is not JSON ({' '.join(str(error).split())[:120]})") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def parse(cls: type[T], value: object, key: str = "") -> T:
    """`value` as an instance of the dataclass `cls`.

    Raises:
        MalformedError: a key is missing or of another type; names it.
    """
    parse_class: Any = _parser(cls)  # type: ignore[arg-type]
    parsed: T = parse_class(value, key)
    return parsed


def plain(value: object) -> Any:
    """A dataclass as plain data; `optional` fields are left out where they have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(content)
            for field in dataclasses.fields(value)
            if (content := getattr(value, field.name)) != field.default or "optional" not in field.metadata
        }
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


@cache
def _parser(hint: Any) -> Parser:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return lambda value, key: value
    if dataclasses.is_dataclass(hint):
        return _dataclass_parser(hint)
    if origin is Literal:
        return _literal_parser(arguments)
    if origin in (Union, types.UnionType):
        return _union_parser(arguments)
    if origin is tuple:
        return _list_parser(arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_parser(arguments[1])
    return _scalar_parser(hint)


def _scalar_parser(hint: Any) -> Parser:
    kind = type(None) if hint is None else hint
    allowed = (int, float) if kind is float else (kind,)

    def parse_scalar(value: object, key: str) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise MalformedError(f"{key} is {_shown(value)}, not {_NAMES.get(kind, kind.__name__)}")
        return float(value) if kind is float else value  # type: ignore[arg-type]

    return parse_scalar


def _literal_parser(allowed: tuple[object, ...]) -> Parser:
    def parse_literal(value: object, key: str) -> Any:
        if isinstance(value, list | dict) or value not in allowed:
            raise MalformedError(f"{key} is {_shown(value)}, not one of [{', '.join(map(str, allowed))}]")
        return value

    return parse_literal


def _union_parser(hints: tuple[Any, ...]) -> Parser:
    optional = type(None) in hints
    (inner,) = (hint for hint in hints if hint is not type(None))

    def parse_union(value: object, key: str) -> Any:
        return None if optional and value is None else _parser(inner)(value, key)

    return parse_union


def _list_parser(hint: Any) -> Parser:
    def parse_list(value: object, key: str) -> Any:
        if not isinstance(value, list):
            raise MalformedError(f"{key} is {_shown(value)}, not a list")
        inner = _parser(hint)
        return tuple(inner(entry, f"{key}[{number}]") for number, entry in enumerate(value))

    return parse_list


def _mapping_parser(hint: Any) -> Parser:
    def parse_mapping(value: object, key: str) -> Any:
        if not isinstance(value, dict):
            raise MalformedError(f"{key} is {_shown(value)}, not a mapping")
        inner = _parser(hint)
        return {name: inner(entry, f"{key}.{name}") for name, entry in value.items()}

    return parse_mapping


def _dataclass_parser(cls: Any) -> Parser:
    hints = get_type_hints(cls)
    fields = [(f.name, f.default is f.default_factory is dataclasses.MISSING) for f in dataclasses.fields(cls)]

    def parse_dataclass(value: object, key: str) -> Any:
        if not isinstance(value, dict):
            raise MalformedError(f"{key or 'the document'} is {_shown(value)}, not a mapping")
        known = {}
        for name, required in fields:
            dotted = f"{key}.{name}" if key else name
            if name in value:
                known[name] = _parser(hints[name])(value[name], dotted)
            elif required:
                raise MalformedError(f"{dotted} is missing")
        return cls(**known)

    return parse_dataclass


_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return json.dumps(value)[:40]


# -- documents -------------------------------------------------------------------------------------------------------
def canonical(value: object) -> bytes:
    """The one JSON text of plain data: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def fingerprint(value: object) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


class DamagedError(ArtifactError):
    """A document exists but is not what it should be; `path` is the file."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: is damaged: {problem}; {remedy}")
        self.path = path
        self.problem = problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON file with a fixed name; subclasses list its keys."""

    FILE: ClassVar[str] = ""
    REMEDY: ClassVar[str] = (
        "maskgit run sets it aside and repairs the step or runs it again (maskgit verify shows all damage)"
    )

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The document in `path`, or None where there is no such file.

        Raises:
            DamagedError: the file is not such a document.
        """
        try:
            document = parse(cls, load(path))
            document.check()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except MalformedError as error:
            raise DamagedError(path, str(error), cls.REMEDY.format(folder=path.parent)) from None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror}); check the disk and permissions") from error
        return document

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The document of this kind in a folder, or None; raises `DamagedError`."""
        return cls.load(folder / cls.FILE)

    @classmethod
    def needed(cls, folder: Path) -> Self:
        """The same where it must exist; raises `ArtifactError` where it does not."""
        document = cls.read(folder)
        if document is None:
            raise ArtifactError(f"{folder}: is not a step's folder ({cls.FILE} is missing)")
        return document

    def check(self) -> None:
        """Raises `MalformedError` where fields contradict each other."""

    def write(self, folder: Path, *, durable: bool = True) -> None:
        """Writes it whole or not at all, replacing what is there; raises `ArtifactError`."""
        write_json(folder / self.FILE, plain(self), durable=durable)

    def create(self, folder: Path) -> bool:
        """Writes it where there is none; True if this call made it."""
        return create_exclusively(folder / self.FILE, plain(self))
