"""The difference of two totals: two inputs of one kind, told apart by name."""

import json
from typing import Annotated

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from maskgit_core.hints import Kind

VERSION = 1
PRODUCES = "difference"


def run(attempt: Attempt, *, left: Annotated[Input, Kind("total")], right: Annotated[Input, Kind("total")]) -> None:
    """Writes left - right."""
    values = [json.loads((i.files / "total.json").read_text()) for i in (left, right)]
    attempt.publish(attempt.files / "difference.json", lambda path: path.write_text(json.dumps(values[0] - values[1])))
    attempt.headline("difference", values[0] - values[1])
