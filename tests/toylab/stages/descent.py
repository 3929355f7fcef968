"""Gradient descent on a parabola: a model whose learning rate decides how near it comes."""

import json

from experiments.running.attempt import Attempt

VERSION = 1
PRODUCES = "model"


def run(attempt: Attempt, *, lr: float = 0.1, num_train_steps: int = 20, seed: int = 0) -> None:
    """Minimizes (x - 3)^2 from x = `seed`; logs the loss and publishes x."""
    x = float(seed)
    for step in range(num_train_steps):
        x -= lr * 2.0 * (x - 3.0)
        attempt.log({"loss": (x - 3.0) ** 2}, step=step)
    attempt.publish(attempt.files / "model.json", lambda path: path.write_text(json.dumps(x)))
    attempt.headline("loss", (x - 3.0) ** 2)
