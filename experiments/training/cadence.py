"""How a training runs, and what it keeps and shows on its way: fields that are keys of the stages that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from maskgit_core.hints import Execution, Neutral, Range


@dataclass(frozen=True)
class Cadence:
    """How a training runs, and what it keeps on its way; the fields are config keys of the stage.

    Args:
        keep_every: checkpoints of these steps are kept as artifacts: `sample.model=train@50000`, or to continue from.
        micro_batch_size: samples a process puts through at once; more are accumulated. None: its whole share.
        compile: whether each block is compiled; recompute: whether it is computed again backwards, to save memory.
        fsdp: whether weights, gradients, moments and moving average are divided among the processes, for models that
            one device cannot hold; AdamW or a relative of it, without a held-out share and samples on the way.
        log_every, checkpoint_every: in optimizer steps; keep_last: checkpoints kept while training.
        pause_at: the training ends there, saved, and goes on when it is run without; a search's trials do so.
        peak_tflops: rate of one device that utilisation is a share of; None: matrix products are timed.
    """

    keep_every: Annotated[int | None, Range(1), Neutral(None)] = None
    micro_batch_size: Annotated[Execution[int | None], Range(1)] = None
    compile: Execution[bool] = False
    recompute: Execution[bool] = False
    fsdp: Execution[bool] = False
    log_every: Annotated[Execution[int], Range(1)] = 50
    checkpoint_every: Annotated[Execution[int], Range(1)] = 1000
    keep_last: Annotated[Execution[int], Range(1)] = 2
    pause_at: Annotated[Execution[int | None], Range(1)] = None
    peak_tflops: Annotated[Execution[float | None], Range(0.0, low_open=True)] = None


@dataclass(frozen=True)
class ShownCadence(Cadence):
    """That of a training whose samples can be shown on its way.

    Args:
        samples_every: a grid of samples of the same seeds every so many steps, `samples/step-*.png`; 0: none.
        samples_classes, samples_guidance: of these grids: a row for each class; None: the first ten.
    """

    samples_every: Annotated[Execution[int], Range(0)] = 0
    samples_classes: Execution[list[int] | None] = None
    samples_guidance: Annotated[Execution[float], Range(0.0)] = 1.0
