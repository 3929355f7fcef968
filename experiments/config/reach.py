"""Refuses keys of the command line or of a sweep that do nothing, or not what their name says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from experiments.config.checker import Checker, StepRequest
from experiments.store.typed_json import Options
from maskgit_core.errors import ConfigError, DataError

#: A value that no option allows or means: where a key reaches a step, this is refused or changes the request.
PROBE = "\x00 no value of this key"
#: Parts of a config that are not values of steps; other code checks them.
_NOT_OF_STEPS = ("paths", "tracking", "notify", "launcher", "plugins", "sweep", "search", "description", "pipeline",
                 "protocol", "further_protocols", "toy")  # fmt: skip


def refuse_unreaching(
    keys: Iterable[str],
    probed: Callable[[str], Options],
    checker: Checker,
    requests: Mapping[str, StepRequest],
) -> None:
    """Refuses the first key that changes no step, or passes by a step that takes it because its block has a value.

    Args:
        keys: dotted, as typed or swept.
        probed: the config with `PROBE` as the value of a key.
        requests: the steps of the config as it is.

    Raises:
        ConfigError: names the key and the keys of that name which steps do take.
    """
    for key in dict.fromkeys(keys):
        if key.partition(".")[0] in _NOT_OF_STEPS:
            continue
        if not _reaches(key, probed, checker, requests):
            near = _same_name(key, requests)
            what = f"write {' or '.join(near)}" if near else "remove it"
            raise ConfigError(
                f"{key}: changes no step of this pipeline (another key decides, or none takes it); {what}"
            )
        if "." not in key and (hidden := _set_in_blocks(key, probed, requests)):
            raise ConfigError(
                f"{key}: would change other steps alone, since {' and '.join(hidden)} set it in their own blocks; "
                f"write STEP.{key}: {' or '.join(f'{step}.{key}' for step in requests if _takes(requests[step], key))}"
            )


def _takes(request: StepRequest, key: str) -> bool:
    return any(key in values for values in (request.config, request.execution, request.content, request.weights))


def _set_in_blocks(key: str, probed: Callable[[str], Options], requests: Mapping[str, StepRequest]) -> list[str]:
    """Steps that take a bare key but whose own block, or their stage's, has another value for it."""
    try:
        config = probed(key)
    except (ConfigError, DataError):  # it decides what else there is
        return []
    blocks = {step: (config.get(step), config.get(request.stage)) for step, request in requests.items()}
    return [
        step
        for step, request in requests.items()
        if _takes(request, key) and any(isinstance(block, Mapping) and key in block for block in blocks[step])
    ]


def _reaches(key: str, probed: Callable[[str], Options], checker: Checker, requests: Mapping[str, StepRequest]) -> bool:
    try:
        return checker.steps(probed(key)) != requests
    except (ConfigError, DataError):  # a place of data is looked at where sizes follow from it
        return True


def _same_name(key: str, requests: Mapping[str, StepRequest]) -> list[str]:
    """Keys whose last part is that of `key`, by step; those of components by their own path."""
    last = key.rpartition(".")[2]
    keys = []
    for step, request in requests.items():
        for name in _flat({**request.config, **request.execution, **request.content, **request.weights}):
            if name.rpartition(".")[2] == last and f"{step}.{name}" != key:
                keys.append(f"{step}.{name}")
    return keys[:5]


def _flat(values: Options) -> Collection[str]:
    names = list(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner in value if inner != "name"]
    return names
