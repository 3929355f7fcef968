"""Adds up one or several sets of numbers."""

import json
from typing import Annotated

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from maskgit_core.hints import Execution, Kind

VERSION = 1
PRODUCES = "total"


def run(
    attempt: Attempt,
    *,
    numbers: Annotated[list[Input], Kind("numbers")],
    weight: float = 1.0,
    fail: Execution[str | None] = None,
) -> None:
    """Writes the weighted sum of all inputs."""
    if fail == "crash":
        raise RuntimeError("asked to crash")
    sums = {i.fingerprint: sum(json.loads((i.files / "numbers.json").read_text())) for i in numbers}
    value = weight * sum(sums.values())
    attempt.publish(attempt.files / "total.json", lambda path: path.write_text(json.dumps(value)))
    attempt.headline("total", value)
