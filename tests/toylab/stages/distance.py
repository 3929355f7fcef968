"""Scores a model by its distance from the optimum."""

import json
from typing import Annotated

from PIL import Image

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
    attempt.publish(attempt.files / "samples.png", lambda path: Image.new("L", (16, 8), 200).save(path, format="PNG"))
    attempt.show(attempt.files / "samples.png")
    attempt.headline("fd_toy", value, {"name": "toy", "reference": "the optimum"})
