"""Checks one configured value against its hint and brings it into its one canonical form."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.config.schema.params import Hint, Param
from maskgit_core.errors import ConfigError, suggestion


def coerce(param: Param, value: object, key: str) -> object:
    """The canonical form of `value` for `param`: `1` becomes `1.0` where a float is meant, tuples become lists.

    Raises:
        ConfigError: wrong type, not one of the allowed values, out of range; begins with `key`.
    """
    done = _by_hint(param.hint, value, key)
    for number in done if isinstance(done, list) else [done]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_range(param, number, key)
    return done


def _check_range(param: Param, number: float, key: str) -> None:
    if param.low is None and param.high is None:
        return
    too_low = param.low is not None and (number <= param.low if param.low_open else number < param.low)
    too_high = param.high is not None and (number >= param.high if param.high_open else number > param.high)
    if too_low or too_high or math.isnan(number):
        left = "" if param.low is None else f"{param.low:g} {'<' if param.low_open else '<='} "
        right = "" if param.high is None else f" {'<' if param.high_open else '<='} {param.high:g}"
        raise ConfigError(f"{key}: {number:g} is out of range; allowed: {left}{param.name}{right}")


def _by_hint(hint: Hint, value: object, key: str) -> object:
    if hint.form == "union":
        return _union(hint.args, value, key)
    if hint.form == "none":
        if value is None:
            return None
    elif hint.form == "literal":
        return _literal(hint, value, key)
    elif hint.form in ("tuple", "list"):
        if isinstance(value, Sequence) and not isinstance(value, str):
            return _sequence(hint, list(value), key)
    elif hint.form == "dict":
        if isinstance(value, dict):
            inner = hint.args[0] if hint.args else None
            return {str(k): plain(v, f"{key}.{k}") if inner is None else _by_hint(inner, v, f"{key}.{k}")
                    for k, v in value.items()}  # fmt: skip
    else:
        return _scalar(hint, value, key)
    raise _mismatch(hint, value, key)


def _mismatch(hint: Hint, value: object, key: str) -> ConfigError:
    return ConfigError(f"{key}: found {value!r} ({_kind_of(value)}); it must be {hint}")


def _kind_of(value: object) -> str:
    names = {dict: "mapping", list: "list", type(None): "null", str: "text"}
    return names.get(type(value), type(value).__name__)


def _union(hints: tuple[Hint, ...], value: object, key: str) -> object:
    # An exact type wins over one that would need conversion: 1 stays an int under `float | int`.
    exact = {bool: "bool", int: "int", float: "float", str: "str", type(None): "none"}.get(type(value))
    for hint in sorted(hints, key=lambda h: h.form != exact):
        try:
            return _by_hint(hint, value, key)
        except ConfigError:
            continue
    raise _mismatch(Hint("union", hints), value, key)


def _literal(hint: Hint, value: object, key: str) -> object:
    for allowed in hint.args:
        if type(allowed) is type(value) and allowed == value:
            return allowed
    if isinstance(value, str):
        near = suggestion(value, [str(a) for a in hint.args])
        raise ConfigError(f"{key}: found {value!r}; {near}It must be {hint}")
    raise _mismatch(hint, value, key)


def _sequence(hint: Hint, values: list[object], key: str) -> list[object]:
    args = hint.args
    if hint.form == "tuple" and args and args[-1] is not Ellipsis:
        if len(values) != len(args):
            raise ConfigError(f"{key}: found {len(values)} values; it must be {hint}")
        return [_by_hint(h, v, f"{key}[{i}]") for i, (h, v) in enumerate(zip(args, values, strict=True))]
    return [_by_hint(args[0], v, f"{key}[{i}]") for i, v in enumerate(values)]


def _scalar(hint: Hint, value: object, key: str) -> object:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key}: {shortened(value)} is out of range; numbers have at most 64 bits")
    if hint.form == "bool" and isinstance(value, bool):
        return value
    if hint.form == "int" and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) or (math.isfinite(value) and value.is_integer()):
            return int(value)
    elif hint.form == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return finite(float(value), key)
    elif hint.form == "float" and isinstance(value, str) and _reads_as_float(value):
        return finite(float(value), key)  # YAML reads 1e-4 as text
    elif hint.form == "str" and isinstance(value, str):
        return value
    raise _mismatch(hint, value, key)


def shortened(number: int) -> str:
    """A number of any length, in a few characters."""
    text = str(number)
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} digits)"


def _reads_as_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text[:1] in "+-.0123456789"


def finite(value: float, key: str) -> float:
    """`value` with one form of zero; NaN and infinities have no canonical form and are refused."""
    if not math.isfinite(value):
        raise ConfigError(f"{key}: {value} has no canonical form; give a finite number")
    return value + 0.0 if value else 0.0


def plain(value: object, key: str) -> object:
    """`value` if it is plain data (scalars, lists, mappings with text keys), else an error: it could not be hashed."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return finite(value, key)
    if isinstance(value, list | tuple):
        return [plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {str(k): plain(v, f"{key}.{k}") for k, v in value.items()}
    raise ConfigError(f"{key}: {type(value).__name__} has no canonical form; use numbers, text, lists and mappings")
