"""Containers around a step's processes: pyxis (options of srun) or apptainer (a prefix of the command)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgit_core.errors import ConfigError, unknown_key

_KEYS = ("runtime", "image", "mounts", "args")
_RUNTIMES = ("pyxis", "apptainer")


@dataclass(frozen=True)
class Container:
    """A container image and how to start it.

    Args:
        runtime: "pyxis" or "apptainer".
        image: as the runtime takes it (a squashfs or SIF file, a registry's reference).
        mounts: "PATH" or "OUTSIDE:INSIDE".
        args: further options of the runtime.
    """

    runtime: str
    image: str
    mounts: tuple[str, ...] = ()
    args: tuple[str, ...] = ()

    @classmethod
    def read(cls, block: Mapping[str, Any]) -> Container:
        """From `launcher.container`; raises `ConfigError` for unknown keys, runtimes and missing images."""
        for key in block:
            if key not in _KEYS:
                raise unknown_key(f"launcher.container.{key}", key, _KEYS)
        runtime, image = block.get("runtime", "apptainer"), block.get("image")
        if runtime not in _RUNTIMES:
            raise ConfigError(f"launcher.container.runtime: found {runtime!r}; one of [{', '.join(_RUNTIMES)}]")
        if not image:
            raise ConfigError("launcher.container.image: missing; name the image file or reference")
        lists: dict[str, tuple[str, ...]] = {}
        for key in ("mounts", "args"):
            value = block.get(key) or ()
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ConfigError(f"launcher.container.{key}: found {value!r}; write a list")
            lists[key] = tuple(str(entry) for entry in value)
        return cls(str(runtime), str(image), **lists)

    def srun_args(self, needed: Sequence[Path]) -> list[str]:
        """Options of srun; `needed` folders are mounted where they are outside."""
        if self.runtime != "pyxis":
            return []
        mounts = ",".join(m if ":" in m else f"{m}:{m}" for m in self._mounts(needed))
        return [f"--container-image={self.image}", f"--container-mounts={mounts}", *self.args]

    def command(self, python: str, needed: Sequence[Path], gpus: bool) -> str:
        """The interpreter as the job starts it."""
        if self.runtime == "pyxis":
            return python
        binds = [part for mount in self._mounts(needed) for part in ("--bind", mount)]
        words = ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, *self.args, self.image]
        return f"{shlex.join(words)} {python}"

    def _mounts(self, needed: Sequence[Path]) -> list[str]:
        return list(dict.fromkeys([*(str(path) for path in needed), *self.mounts]))
