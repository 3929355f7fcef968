"""Transformers: tokens in, logits out; one file each."""

from __future__ import annotations

#: Former name -> present one. Configs, requests, weights and kept models made under a former name go on working.
RENAMED = {"official": "maskgit"}
_MODULES = {f"{__name__}.{old}": f"{__name__}.{new}" for old, new in RENAMED.items()}


def present_module(module: str) -> str:
    """The dotted module that is meant by one written down at any time."""
    return _MODULES.get(module, module)


def first_name(module: str, name: str) -> str:
    """The name that a component of `module` had first: the one in fingerprints, which a new name must not change."""
    return next((old.rpartition(".")[2] for old, new in _MODULES.items() if new == module), name)
