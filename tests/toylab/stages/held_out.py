"""The likelihood of held-out labels under a logistic regression."""

import json
from typing import Annotated

import numpy as np

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from maskgit_core.hints import Kind
from toylab.stages.logistic import data

VERSION = 1
PRODUCES = "scores"


def nll(weights: np.ndarray) -> float:
    """Mean negative log-likelihood in nats."""
    inputs, labels = data(2, 2000)
    logits = np.clip(inputs @ weights, -60, 60)
    return float(np.mean(np.log1p(np.exp(-logits)) + (1 - labels) * logits))


def run(attempt: Attempt, *, model: Annotated[Input, Kind("model")]) -> None:
    """Writes `scores.json` under the protocol `toy`."""
    value = nll(np.array(json.loads((model.files / "model.json").read_text())))
    row = {"name": "nll", "of": "samples", "value": value, "num_images": 2000, "protocol": "toy"}
    written = {"scores": [row], "protocols": {"toy": {"reference": "held out"}}}
    attempt.publish(attempt.files / "scores.json", lambda path: path.write_text(json.dumps(written)))
    attempt.headline("nll", value, {"name": "toy", "reference": "held out"})
