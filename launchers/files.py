"""Small JSON files written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from maskgit_core.errors import LaunchError


def write_json(path: Path, value: Any) -> None:
    """Writes `value` beside `path`, syncs it and renames it into place.

    Raises:
        LaunchError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LaunchError(f"{path}: cannot be written ({error.strerror}); jobs need this folder") from error


def read_json(path: Path) -> Any | None:
    """The JSON in `path`, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
