"""The part of a config about execution (paths, tracking, plugins), never part of an identity."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from experiments.config.schema.coercion import coerce
from experiments.config.schema.params import Hint, Param
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, TrackingError, unknown_key

#: A `tracking.uri` that means the address in MLFLOW_TRACKING_URI, so that it is recorded nowhere.
FROM_ENVIRONMENT = "env"
_TEXT, _NONE = Hint("str"), Hint("none")
SCHEMA: dict[str, dict[str, Param]] = {
    "paths": {name: Param(name, _TEXT) for name in ("store", "data")},
    "tracking": {
        "uri": Param("uri", Hint("union", (_TEXT, _NONE)), None),
        "ship": Param("ship", Hint("bool"), True),
        "also": Param("also", Hint("list", (Hint("literal", ("tensorboard", "wandb")),)), []),
    },
    "notify": {
        "command": Param("command", Hint("union", (_TEXT, _NONE)), None),
        "webhook": Param("webhook", Hint("union", (_TEXT, _NONE)), None),
        "each_failure": Param("each_failure", Hint("bool"), True),
    },
}


def checked(config: Options) -> Block:
    """`paths`, `tracking`, `notify`, `launcher` and `plugins` of a composed config, checked.

    Raises:
        ConfigError: an unknown key or a wrong type.
        TrackingError: an address that MLflow would not serve.
    """
    launcher = config.get("launcher") or {}
    if not isinstance(launcher, Mapping):
        raise ConfigError(f"launcher: found {launcher!r}; it must be a mapping with `name`, or launcher=NAME")
    settings: Block = {"launcher": dict(launcher)}
    for block in ("launcher", "paths"):
        refuse_control_characters(block, config.get(block))
    for block, schema in SCHEMA.items():
        given = config.get(block) or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{block}: found {given!r}; it must be a mapping of [{', '.join(schema)}]")
        settings[block] = {name: p.default for name, p in schema.items() if not p.required}
        for key, value in given.items():
            if key not in schema:
                raise unknown_key(f"{block}.{key}", str(key), schema)
            settings[block][key] = coerce(schema[key], value, f"{block}.{key}")
    if settings["tracking"]["uri"] != FROM_ENVIRONMENT:
        resolve_uri(Path(), refuse_password(settings["tracking"]["uri"]))
    hook = settings["notify"]["webhook"]
    if hook is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", hook):
        raise ConfigError(
            "notify.webhook: give the name of an environment variable that holds the address, e.g. MASKGIT_NOTIFY_URL; "
            "the address itself is a secret and would be recorded with every run"
        )
    plugins = config.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(p, str) and p.isidentifier() for p in plugins):
        raise ConfigError(f"plugins: found {plugins!r}; it must be a list of package names")
    settings["plugins"] = plugins
    return settings


def refuse_control_characters(key: str, value: object) -> None:
    """Refuses text that a shell, a batch script or a terminal would take for something else.

    Raises:
        ConfigError: a newline, an escape or another control character; names the key.
    """
    if isinstance(value, str) and any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ConfigError(f"{key}: found {value!r}; it must be one line without control characters")
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        refuse_control_characters(f"{key}.{name}", part)


def without_password(text: str) -> str:
    """The same with `***` for the passwords of the addresses in it."""
    text = re.sub(r"""://([^:/@\s"']*):[^\s"']*@""", r"://\1:***@", text)
    return re.sub(r"""([?&][\w.-]*(?:password|passwd|token|secret)[\w.-]*=)[^&\s"']+""", r"\1***", text, flags=re.I)


def refuse_password(uri: str | None) -> str | None:
    """`uri`, unless it holds a password: what is written in a config or a command is recorded and seen by others.

    Raises:
        TrackingError: names the environment variables that keep it out of both.
    """
    if uri and without_password(uri) != uri:
        raise TrackingError(
            f"tracking.uri: {without_password(uri)}: a password here would be recorded with every run; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, or put the whole address into "
            f"MLFLOW_TRACKING_URI and write tracking.uri={FROM_ENVIRONMENT}"
        )
    return uri


def default_uri() -> str | None:
    """The address MLflow itself would use, where the environment names one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def resolve_uri(store: Path, uri: str | None) -> str:
    """The tracking store's address; null is an SQLite file in the store.

    Raises:
        TrackingError: an address MLflow would not serve.
    """
    if uri == FROM_ENVIRONMENT:
        uri = default_uri()
        if uri is None:
            raise TrackingError(f"tracking.uri: {FROM_ENVIRONMENT}: MLFLOW_TRACKING_URI is not set here; set it")
    if not uri:
        return f"sqlite:///{Path(store).absolute() / 'mlflow.db'}"
    if not uri.startswith(("http://", "https://", "sqlite:///", "postgresql", "mysql", "mssql")):
        raise TrackingError(
            f"tracking.uri: {without_password(uri)}: cannot be used; write null (SQLite in the store), "
            "http://HOST:PORT, sqlite:///FILE or postgresql://..."
        )
    return uri
