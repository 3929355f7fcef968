"""Says where a sampler's published settings are used with a model that they were not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.config.schema.sources import present_name
from experiments.store.typed_json import Options

if TYPE_CHECKING:
    from experiments.planning.graph import Node


def unlike_model(node: Node, nodes: Mapping[str, Node]) -> str:
    """One line about a step that samples another model than its sampler's `made_for` names; empty where there is none.

    A model whose config is not known (adopted from elsewhere) is not judged.
    """
    wanted, models = node.request.made_for, node.inputs.get("model", ())
    if not wanted or not models:
        return ""
    source = nodes[models[0]]
    config = nodes[source.maker or source.fingerprint].request.config.get("model")
    if not isinstance(config, Mapping):
        return ""
    config = {**config, "name": present_name("Model", config.get("name"))}
    if all(config.get(key) == value for key, value in wanted.items()):
        return ""
    known = {key: config[key] for key in wanted if key in config}
    return (
        f"sampler: its settings were published for the model {_text(wanted)} and are used with "
        f"{_text(known)}, for which nothing is known of them"
    )


def _text(model: Options) -> str:
    options = ", ".join(f"{key} {value}" for key, value in model.items() if key != "name")
    return f"{model['name']} ({options})" if options else str(model["name"])
