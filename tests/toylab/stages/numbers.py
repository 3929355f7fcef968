"""Writes `count` numbers, slowly if asked; goes on from the last one it published."""

import json
import os
import time
from typing import Annotated, Literal

from experiments.running.attempt import Attempt
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Execution, Neutral, Range

VERSION = 1
PRODUCES = "numbers"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    count: Annotated[int, Range(1, 10_000)] = 5,
    scale: float = 1.0,
    form: Literal["plain", "squared"] = "plain",
    source: Content[str | None] = None,
    offset: Annotated[int, Neutral(0)] = 0,
    pause_s: Execution[float] = 0.0,
    fail: Execution[str | None] = None,
    needs_mb: Execution[float] = 0.0,
    holds_mb: Execution[float] = 0.0,
) -> None:
    """Publishes one part a number, so that a killed attempt loses at most one.

    Args:
        needs_mb: a SLURM job that was given less kills itself, as the kernel would.
        holds_mb: memory that is really taken.
    """
    if float(os.environ.get("SLURM_MEM_PER_NODE", "inf")) < needs_mb:
        os.kill(os.getpid(), 9)
    held = bytearray(b"x" * int(holds_mb * 1e6))
    base = 0.0
    if source is not None:
        with open(source) as file:
            base = float(file.read())
    for i in attempt.progress(range(count), unit="number"):
        if attempt.share is not None and i % attempt.world_size != attempt.rank:
            continue
        part = attempt.parts / f"{i:05d}.json"
        if not part.exists():
            print(f"made {i}", flush=True)
            time.sleep(pause_s)
            value = (base + i + offset) * scale
            value = value**2 if form == "squared" else value
            attempt.publish(part, lambda path, value=value: path.write_text(json.dumps(value)))
        attempt.log({"value": json.loads(part.read_text())}, step=i)
        if attempt.should_stop:
            attempt.stop()
    del held
    if attempt.share is not None:
        return
    if fail == "crash":
        raise RuntimeError("asked to crash")
    if fail == "refuse":
        raise DataError("numbers.txt: cannot be read; give another file")
    if fail == "kill":
        os.kill(os.getpid(), 9)
    values = [json.loads((attempt.parts / f"{i:05d}.json").read_text()) for i in range(count)]
    attempt.publish(attempt.files / "numbers.json", lambda path: path.write_text(json.dumps(values)))
    attempt.fact(count=count)
    attempt.headline("largest", max(values))
