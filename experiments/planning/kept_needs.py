"""Kept checkpoints (`train@N`) as inputs: whether the named one will exist, and what its training asked for."""

from __future__ import annotations

from pathlib import Path

from experiments.config.checker import StepRequest
from experiments.store.documents import Request
from maskgit_core.errors import ConfigError


def check_is_kept(request: StepRequest, step: int, key: str) -> bool:
    """Whether `step` is just the training's end, of which it keeps nothing apart; the finished model is meant then.

    Raises:
        ConfigError: the training will not keep a checkpoint of this step.
    """
    every, last = request.config.get("keep_every"), request.config.get("num_train_steps")
    if last is None or "keep_every" not in request.config:
        raise ConfigError(f"{key}: {request.name} keeps no checkpoints; write {request.name} instead of its @{step}")
    kept = every is not None and step % every == 0 and step <= last
    if not kept and step != last:
        raise ConfigError(
            f"{key}: {request.name} keeps no checkpoint of step {step} ({request.name}.keep_every is "
            f"{every or 'null'}, it ends at {last}); set {request.name}.keep_every to a divisor of {step}"
        )
    return not kept


def stored_request(folder: Path, name: str) -> tuple[StepRequest, str]:
    """The request of a finished step of the store, as far as its users must know it, and its fingerprint."""
    request = Request.needed(folder)
    asked = StepRequest(
        name=name,
        stage=request.stage,
        module=request.module,
        version=request.version,
        kind=request.kind,
        config=request.config,
        identity=request.identity,
        modules=request.modules,
        execution={},
        content={},
        weights={},
        needs={},
    )
    return asked, request.fingerprint
