"""Sections on training: share of the matrix rate, waiting for batches, two ranks, equality after a resume."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from maskgit_core.batches.tokens import Batch, Batches, ahead
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from maskgit_core.training.masked import MaskedBatch, Masker, masked_steps
from maskgit_core.training.recipe import Precision, Recipe
from maskgit_core.training.trainer import Trainer
from maskgit_core.training.utilisation import matrix_rate, operations_per_token
from tools.gpu.rig import ROOT, Figure, Rig

#: Share of the measured matrix rate that training should reach.
GOAL = 0.5
#: Training steps between two readings of the clock.
STEPS = 4


def recipe(batch_size: int, precision: Precision = "bf16") -> Recipe:
    """The recipe of the PyTorch MaskGIT."""
    return Recipe(num_train_steps=1000, batch_size=batch_size, warmup_steps=100, precision=precision)


def batches(rig: Rig, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """Random tokens with their places in the training stream; `batch_size` is that of all ranks."""
    facts, start = rig.facts, 0
    own = slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
    while True:
        draws = torch.Generator().manual_seed(start)
        tokens = torch.randint(0, facts["codebook_size"], (batch_size, facts["num_tokens"]), generator=draws)
        places = torch.arange(start, start + batch_size)
        labels = places % facts["num_classes"]
        yield Batch(tokens[own], labels[own], places[own], places[own], places[own])
        start += batch_size


def steps(trainer: Trainer, stream: Iterator[Batch]) -> Iterator[list[MaskedBatch]]:
    """Masked batches on the trainer's device, read ahead as in the stage."""
    return ahead(masked_steps(stream, _masker(trainer), 1, trainer.accelerator.device), 4)


def _masker(trainer: Trainer) -> Masker:
    return Masker(trainer.recipe, trainer.model.mask_token_id, trainer.model.null_label)


def matrix_share(rig: Rig) -> Iterator[Figure]:
    """(a) Training of 24 x 768 beside the measured rate of matrix products, compiled or not, and the largest batch."""
    rate = rig.pick(None, 1e9) or matrix_rate(rig.device, "bf16")
    yield {"name": "matrix_rate", "value": rate / 1e12, "unit": "TFLOP/s", "precision": "bf16"}
    cases = [(True, 1024, 256), (False, 1024, 256), (True, 1024, 64), (True, 1024, 32), (True, 16384, 256)]
    for is_compiled, codebook, batch in rig.pick(cases, [(False, 64, 4)]):
        if rig.is_late:
            yield {"name": "train", "skipped": f"no time for K = {codebook}, batch {batch}, compiled {is_compiled}"}
            continue
        about = {"compiled": is_compiled, "codebook": codebook, "batch": batch}
        rig.free()
        try:
            yield _measured(rig, rate, is_compiled, codebook, batch) | about
        except torch.OutOfMemoryError:
            yield {"name": "train_matrix_rate_share", "skipped": "out of memory", **about}
    yield from _largest_batch(rig)


def _measured(rig: Rig, rate: float, is_compiled: bool, codebook: int, batch: int) -> Figure:
    model = rig.model(dropout=0.1, codebook_size=codebook)
    trainer = Trainer(model, recipe(batch), rig.device, is_compiled)
    ready = steps(trainer, batches(rig, batch))

    def some_steps() -> None:  # not each by itself: a training never waits for the device between two steps
        for _ in range(STEPS):
            trainer.train_step(next(ready))

    seconds = rig.seconds(some_steps, rounds=5, warm_up=2) / STEPS
    share = batch * rig.facts["num_tokens"] * operations_per_token(trainer.model) / seconds / rate
    about = {"ms_per_step": seconds * 1e3, "peak_gb": rig.peak_gb}
    passed = {"goal": GOAL, "reached": share >= GOAL} if is_compiled and (codebook, batch) == (1024, 256) else {}
    return {"name": "train_matrix_rate_share", "value": share, "unit": "share", **about, **passed}


def _largest_batch(rig: Rig) -> Iterator[Figure]:
    """The largest power of two that a step fits with, from below; what ends the search is said beside it."""
    fitted, ended_by = None, "the end of the range"
    for batch in rig.pick([2**power for power in range(5, 14)], [2, 4]):
        if rig.is_late:
            ended_by = "time"
            break
        rig.free()
        try:
            fitted = {"value": batch, "peak_gb": _one_step(rig, batch)}
        except torch.OutOfMemoryError:
            ended_by = "memory"
            break
    rig.free()
    yield {"name": "largest_batch", "value": 0, "unit": "samples", **(fitted or {}), "ended_by": ended_by}


def _one_step(rig: Rig, batch: int) -> float | None:
    """Most memory of two training steps: the second has the optimizer's moments too."""
    trainer = Trainer(rig.model(dropout=0.1), recipe(batch), rig.device)
    ready = masked_steps(batches(rig, batch), _masker(trainer), 1, trainer.accelerator.device)
    pieces = next(ready)
    for _ in range(2):
        trainer.train_step(pieces)
    rig.wait()
    return rig.peak_gb


def data_wait(rig: Rig) -> Iterator[Figure]:
    """(b) Share of the time that steps wait for batches read from shards and masked ahead."""
    batch, side = rig.pick(256, 4), rig.pick(16, 4)
    count, codebook = rig.pick(20000, 32), rig.facts["codebook_size"]
    trainer = Trainer(rig.model(dropout=0.1), recipe(batch), rig.device)
    with tempfile.TemporaryDirectory() as folder:
        draws, layout = np.random.default_rng(0), Layout(codebook_size=codebook, grid=(side, side), num_variants=2)
        tokens = draws.integers(0, codebook, (count, 2, side, side))
        samples = Samples([str(i) for i in range(count)], np.arange(count) % 10, tokens)
        write_manifest(Path(folder), layout, [write_shard(Path(folder), 0, layout, samples)], num_classes=10)
        ready = steps(trainer, iter(Batches(TokenShards(folder), batch_size=batch, seed=0)))
        for _ in range(rig.pick(10, 1)):
            trainer.train_step(next(ready))
        rig.wait()
        began, waited = time.perf_counter(), 0.0
        for _ in range(rig.pick(60, 2)):
            asked = time.perf_counter()
            pieces = next(ready)
            waited += time.perf_counter() - asked
            trainer.train_step(pieces)
        rig.wait()
        yield {"name": "data_wait_share", "value": waited / (time.perf_counter() - began), "unit": "share"}


def two_ranks(rig: Rig) -> Iterator[Figure]:
    """(e) The same training by one and by two processes, each with its own card."""
    if not rig.is_dry and torch.cuda.device_count() < 2:
        yield {"name": "two_ranks", "skipped": f"needs two GPUs; {torch.cuda.device_count()} here"}
        return
    both = _launched(rig, 2)
    alone = _launched(rig, 1) if not rig.is_dry else _trained(rig)
    yield {
        "name": "two_ranks",
        "value": alone["seconds"] / both["seconds"],
        "unit": "times the speed of one",
        "loss_difference": abs(alone["loss"] - both["loss"]),
        "devices": both["devices"],
    }


def _launched(rig: Rig, world_size: int) -> Figure:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        variables = {**{k: str(v) for k, v in place.items()}, "MASTER_ADDR": "127.0.0.1"}
        if rig.is_dry:
            variables |= {"MASKGIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tools.gpu.training", *(["--dry"] if rig.is_dry else [])]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(
            subprocess.Popen(command, env={**os.environ, **variables}, cwd=ROOT, text=True, **streams)  # type: ignore[call-overload]
        )
    try:
        outputs = [process.communicate(timeout=rig.pick(40, 400)) for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that waits for a rank that failed waits for ever
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode != 0:
            raise RuntimeError(f"rank {rank} of {world_size}: {(errors.strip().splitlines() or ['no output'])[-1]}")
    lines = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    return {**lines[0], "devices": [line["device"] for line in lines]}


def one_rank() -> None:
    """The work of each process of `two_ranks`."""
    from maskgit_core.devices import bind_device

    print(json.dumps(_trained(Rig(bind_device(), "--dry" in sys.argv))))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _trained(rig: Rig) -> Figure:
    """Seconds of some steps of this process, and their mean loss over all."""
    batch = rig.pick(256, 4)
    trainer = Trainer(rig.model(), recipe(batch, rig.pick("bf16", "fp32")), rig.device)
    accelerator = trainer.accelerator
    stream = batches(rig, batch, accelerator.process_index, accelerator.num_processes)
    ready = steps(trainer, stream)
    for _ in range(rig.pick(5, 1)):
        trainer.train_step(next(ready))
    rig.wait()
    began = time.perf_counter()
    for _ in range(rig.pick(20, 2)):
        trainer.train_step(next(ready))
    rig.wait()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "loss": trainer.meters.read()["loss"], "device": str(accelerator.device)}


def resume(rig: Rig) -> Iterator[Figure]:
    """(i) Weights after 2 + 2 steps with a saved state between, against 4 steps at a stretch.

    With PyTorch's deterministic kernels they must be equal. The kernels that training uses add some gradients in the
    order in which threads arrive: there two equal trainings differ too, and that difference stands beside.
    """
    kinds: tuple[bool, ...] = rig.pick((True, False), (True,))
    for dropout, is_deterministic in itertools.product((0.0, 0.1), kinds):
        with deterministic(is_deterministic):
            whole = _after_four(rig, dropout, is_stopped=False)
            most = _most_apart(whole, _after_four(rig, dropout, is_stopped=True))
            about = {"dropout": dropout, "deterministic": is_deterministic}
            if not is_deterministic:
                about["two_equal_trainings"] = _most_apart(whole, _after_four(rig, dropout, is_stopped=False))
        yield {"name": "resume_difference", "value": most, "unit": "largest of all weights", **about}


@contextlib.contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """PyTorch's deterministic kernels, where there are any; the others warn."""
    torch.use_deterministic_algorithms(is_on, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _after_four(rig: Rig, dropout: float, is_stopped: bool) -> list[torch.Tensor]:
    """All weights after four steps; `is_stopped`: by a trainer that goes on from another's state after two."""
    batch = rig.pick(64, 4)
    trainer = Trainer(rig.model(dropout=dropout), recipe(batch), rig.device)
    stream = masked_steps(batches(rig, batch), _masker(trainer), 1, torch.device(rig.device))
    for number, pieces in zip(range(4), stream, strict=False):
        if is_stopped and number == 2:
            saved = trainer.state(trainer.meters.totals())
            trainer = Trainer(rig.model(dropout=dropout), recipe(batch), rig.device)
            trainer.load_state(*saved, "resume")
        trainer.train_step(pieces)
    return [parameter.detach() for parameter in trainer.parameters.values()]


def _most_apart(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    one_rank()
