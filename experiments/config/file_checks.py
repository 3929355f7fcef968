"""Refuses config files and interpolations that would take all memory or time, before Hydra reads them.

A YAML file of one kilobyte can expand to billions of values: by aliases of aliases, or by interpolations of
interpolations. Both are counted here without being expanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.store.typed_json import Options
from maskgit_core.errors import ConfigError

#: Values in a file and characters in a config, expanded, at most.
MAX_VALUES, MAX_CHARACTERS = 200_000, 20_000_000
MAX_BYTES, MAX_DEPTH = 4_000_000, 60
_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.\[\]]+)\}")


def check_files(group: str, name: str, config_dirs: Sequence[Path]) -> None:
    """Checks a user's file of a group, and those of the user's files that its `defaults` name.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    todo, seen = [(group, name)], set()
    while todo:
        group, name = todo.pop()
        for folder in config_dirs:
            path = folder / group / f"{name}.yaml"
            if path not in seen and path.is_file():
                seen.add(path)
                if not isinstance(value := read_yaml(path), Mapping | None):
                    raise ConfigError(
                        f"{path}: holds a {type(value).__name__}; a config is a mapping of keys to values"
                    )
                todo += _defaults(value, group)


def read_yaml(path: Path) -> object:
    """A YAML file's value; see the module.

    Raises:
        ConfigError: it is too large, not UTF-8, not YAML, or expands to more than is allowed.
    """
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes; a config is small, give the right file")
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, path, {}, ())
        with path.open(encoding="utf-8") as file:
            return yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: is not YAML ({text})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); mend it or choose another file") from None


def _count(node: Any, path: Path, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values of a node with its aliases expanded."""
    if id(node) in above:
        raise ConfigError(f"{path}: line {node.start_mark.line + 1}: an alias refers to what it is part of; remove it")
    if len(above) > MAX_DEPTH:
        raise ConfigError(f"{path}: line {node.start_mark.line + 1}: nested deeper than {MAX_DEPTH}; make it flatter")
    if id(node) not in known:
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count(part, path, known, (*above, id(node))) for part in parts)
        if known[id(node)] > MAX_VALUES:
            raise ConfigError(
                f"{path}: line {node.start_mark.line + 1}: its aliases stand for more than {MAX_VALUES:,} values; "
                "write fewer"
            )
    return known[id(node)]


def _defaults(value: object, group: str) -> list[tuple[str, str]]:
    """The files that a defaults list names, as (group, name)."""
    listed = value.get("defaults") if isinstance(value, Mapping) else None
    files: list[tuple[str, str]] = []
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, str):
            files.append((group, entry))
        elif isinstance(entry, Mapping):
            for key, name in entry.items():
                place = str(key).split()[-1].split("@")[0]
                files.append((place.lstrip("/") if place.startswith("/") else f"{group}/{place}", str(name)))
    return files


def check_size(config: Options) -> None:
    """Refuses interpolations that would expand to more than is allowed.

    Raises:
        ConfigError: names the first such key.
    """
    sizes: dict[str, int] = {}

    def of(key: str, above: tuple[str, ...]) -> int:
        if key in above or len(above) > 500:  # a circle: OmegaConf names it
            return 0
        if key not in sizes:
            value: object = config
            for part in key.replace("[", ".").replace("]", "").split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            sizes[key] = size(value, (*above, key))
        return sizes[key]

    def size(value: object, above: tuple[str, ...]) -> int:
        if isinstance(value, str):
            total = len(value) + sum(of(key, above) for key in _REFERENCE.findall(value))
        elif isinstance(value, Mapping):
            total = sum(size(inner, above) for inner in value.values())
        elif isinstance(value, list):
            total = sum(size(inner, above) for inner in value)
        else:
            total = 1
        if total > MAX_CHARACTERS:
            raise ConfigError(
                f"{above[0] if above else 'conf'}: its interpolations stand for more than {MAX_CHARACTERS:,} "
                "characters; write fewer"
            )
        return total

    for key, value in config.items():
        size(value, (str(key),))
