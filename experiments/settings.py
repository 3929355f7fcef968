"""The part of a config that says how and where, never what: paths, tracking, plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.signatures import Hint, Param
from experiments.tracking_address import resolve_uri
from experiments.values import coerce, unknown_key
from maskgit_core.errors import ConfigError

_TEXT, _NONE = Hint("str"), Hint("none")
SCHEMA: dict[str, dict[str, Param]] = {
    "paths": {name: Param(name, _TEXT) for name in ("store", "data")},
    "tracking": {
        "uri": Param("uri", Hint("union", (_TEXT, _NONE)), None),
        "ship": Param("ship", Hint("bool"), True),
    },
}


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """`paths`, `tracking`, `launcher` and `plugins` of a composed config, checked.

    Raises:
        ConfigError: an unknown key or a wrong type.
        TrackingError: an address that MLflow would not serve.
    """
    found: dict[str, Any] = {"launcher": dict(config.get("launcher") or {})}
    for block, schema in SCHEMA.items():
        given = config.get(block) or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{block}: found {given!r}; it must be a mapping of [{', '.join(schema)}]")
        found[block] = {name: p.default for name, p in schema.items() if not p.required}
        for key, value in given.items():
            if key not in schema:
                raise unknown_key(f"{block}.{key}", str(key), schema)
            found[block][key] = coerce(schema[key], value, f"{block}.{key}")
    resolve_uri(Path(), found["tracking"]["uri"])
    plugins = config.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(p, str) and p.isidentifier() for p in plugins):
        raise ConfigError(f"plugins: found {plugins!r}; it must be a list of package names")
    found["plugins"] = plugins
    return found
