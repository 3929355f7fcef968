"""Scores a model by its distance from the optimum."""

import json
from typing import Annotated

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from maskgit_core.hints import Kind

VERSION = 1
PRODUCES = "scores"


def run(attempt: Attempt, *, model: Annotated[Input, Kind("model")]) -> None:
    """Writes `scores.json` under the protocol `toy`."""
    value = abs(json.loads((model.files / "model.json").read_text()) - 3.0)
    row = {"name": "fd_toy", "of": "samples", "value": value, "num_images": 1, "protocol": "toy"}
    written = {"scores": [row], "protocols": {"toy": {"reference": "the optimum"}}}
    attempt.publish(attempt.files / "scores.json", lambda path: path.write_text(json.dumps(written)))
    attempt.headline("fd_toy", value, {"name": "toy", "reference": "the optimum"})
