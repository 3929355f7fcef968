"""The difference between two requests of a step, key by key."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.planning.graph import Node
from experiments.store.typed_json import Options


def request_of(node: Node) -> dict[str, object]:
    """The part of a node's request that makes its identity."""
    return {
        "version": node.request.version,
        "identity": dict(node.request.identity),
        "outside": dict(node.outside),
        "inputs": {k: [{"fingerprint": p} for p in v] for k, v in node.inputs.items()},
    }


def flat_request(request: Options) -> dict[str, object]:
    """Dotted key -> value of everything that makes a step's identity."""
    flat: dict[str, object] = {"version": request.get("version")}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", request.get("identity") or request.get("config", {}))  # without options at their neutral values
    for key, digest in request.get("outside", {}).items():
        flat[f"content of {key}"] = digest[:8]
    for key, entries in request.get("inputs", {}).items():
        flat[f"input {key}"] = sorted(e["fingerprint"][:8] for e in entries)
    return flat


def difference(old: Mapping[str, object], new: Mapping[str, object], step: str) -> list[str]:
    """Keys whose values differ, as `train.lr: 0.001 -> 0.0005`; own keys first, inputs last."""
    lines = []
    for key in sorted({*old, *new}, key=lambda k: (k.startswith(("input ", "content of ")), k)):
        before, after = old.get(key, "unset"), new.get(key, "unset")
        if before == after:
            continue
        if key.startswith("input "):
            lines.append(f"{key} differs")
        elif key.startswith("content of "):
            lines.append(f"{key} changed")
        else:
            lines.append(f"{step}.{key}: {before} -> {after}")
    return lines
