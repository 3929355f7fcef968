"""Sections on training: share of the matrix rate, waiting for batches, two ranks, equality after a resume."""

from __future__ import annotations

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
from tools.gpu.rig import Figure, Rig

#: Share of the measured matrix rate that training should reach.
GOAL = 0.5


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
    masker = Masker(trainer.recipe, trainer.model.mask_token_id, trainer.model.null_label)
    return ahead(masked_steps(stream, masker, 1, trainer.accelerator.device), 4)


def matrix_share(rig: Rig) -> Iterator[Figure]:
    """(a) Training of 24 x 768 beside the measured rate of matrix products, compiled or not, and the largest batch."""
    rate = rig.pick(None, 1e9) or matrix_rate(rig.device, "bf16")
    yield {"name": "matrix_rate", "value": rate / 1e12, "unit": "TFLOP/s", "precision": "bf16"}
    cases = [(True, 1024, 256), (False, 1024, 256), (True, 1024, 64), (True, 1024, 32), (True, 16384, 256)]
    for is_compiled, codebook, batch in rig.pick(cases, [(False, 64, 4)]):
        if rig.is_late:
            yield {"name": "train", "skipped": f"no time for K = {codebook}, batch {batch}, compiled {is_compiled}"}
            continue
        yield _measured(rig, rate, is_compiled, codebook, batch)
    if not rig.is_late:
        yield {"name": "largest_batch", "value": _largest_batch(rig), "unit": "samples", "precision": "bf16"}


def _measured(rig: Rig, rate: float, is_compiled: bool, codebook: int, batch: int) -> Figure:
    model = rig.model(dropout=0.1, codebook_size=codebook)
    trainer = Trainer(model, recipe(batch), rig.device, is_compiled)
    ready = steps(trainer, batches(rig, batch))
    seconds = rig.seconds(lambda: trainer.train_step(next(ready)), rounds=20, warm_up=8)
    share = batch * rig.facts["num_tokens"] * operations_per_token(trainer.model) / seconds / rate
    about = {"compiled": is_compiled, "codebook": codebook, "batch": batch, "ms_per_step": seconds * 1e3}
    passed = {"goal": GOAL, "reached": share >= GOAL} if is_compiled and (codebook, batch) == (1024, 256) else {}
    return {"name": "train_matrix_rate_share", "value": share, "unit": "share", **about, **passed}


def _largest_batch(rig: Rig) -> int:
    """The largest power of two that a step fits with."""
    batch, most = rig.pick(256, 2), rig.pick(8192, 4)
    while batch <= most:
        try:
            trainer = Trainer(rig.model(dropout=0.1), recipe(batch), rig.device)
            trainer.train_step(next(steps(trainer, batches(rig, batch))))
            rig.wait()
        except torch.OutOfMemoryError:
            break
        batch *= 2
    return batch // 2


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
    alone, both = _launched(rig, 1), _launched(rig, 2)
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
        processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=rig.pick(80, 400))[0] for process in processes]
    lines = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {**lines[0], "devices": [line["device"] for line in lines]}


def one_rank() -> None:
    """The work of each process of `two_ranks`."""
    from maskgit_core.devices import bind_device

    rig = Rig(bind_device(), "--dry" in sys.argv)
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
    print(json.dumps({"seconds": seconds, "loss": trainer.meters.read()["loss"], "device": str(accelerator.device)}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def resume(rig: Rig) -> Iterator[Figure]:
    """(i) Weights after 2 + 2 steps with a saved state between, against 4 steps at a stretch."""
    for dropout in (0.0, 0.1):
        batch = rig.pick(64, 4)
        pieces = [next_list for next_list, _ in zip(_on_device(rig, batch), range(4), strict=False)]
        whole, first, second = (Trainer(rig.model(dropout=dropout), recipe(batch), rig.device) for _ in range(3))
        for piece in pieces:
            whole.train_step(piece)
        for piece in pieces[:2]:
            first.train_step(piece)
        second.load_state(*first.state(first.meters.totals()), "resume")
        for piece in pieces[2:]:
            second.train_step(piece)
        pairs = zip(whole.parameters.values(), second.parameters.values(), strict=True)
        most = max(float((one.detach() - other.detach()).abs().max()) for one, other in pairs)
        yield {"name": "resume_difference", "value": most, "unit": "largest of all weights", "dropout": dropout}


def _on_device(rig: Rig, batch: int) -> Iterator[list[MaskedBatch]]:
    model = rig.model()
    masker = Masker(recipe(batch), model.mask_token_id, model.null_label)
    return masked_steps(batches(rig, batch), masker, 1, torch.device(rig.device))


if __name__ == "__main__":
    one_rank()
