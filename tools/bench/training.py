"""Training steps against the original's files and a plain loop, and how long a step waits for its data.

    MASKGIT_ORIGINAL=CHECKOUT python -m tools.bench.training

Original: the PyTorch MaskGIT's own model and moving average, in the order of its training script, with AdamW as
PyTorch has it. Plain: our model and batch, attention as softmax(Q K^T) V with dropout, one mask ratio a batch, logits
of all tokens, AdamW and the moving average parameter by parameter. Ours: the package's trainer. Steps alternate in
one process, in CPU seconds; with compiled blocks too. GPUs are measured by `python -m tools.gpu`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskgit_core.batches.tokens import Batch, Batches, ahead
from maskgit_core.models.prenorm import Attention, Model
from maskgit_core.shards.format import Layout
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from maskgit_core.training.masked import Masker, masked_steps
from maskgit_core.training.recipe import Precision, Recipe
from maskgit_core.training.trainer import Trainer
from tools.bench._figures import budget, figure, original

SIZE = {"dim": 256, "num_layers": 4, "num_heads": 8}
FACTS = {"codebook_size": 1024, "num_tokens": 256, "num_classes": 1000}
BATCH, ROUNDS = 8, 8


def recipe(precision: Precision = "fp32", batch_size: int = BATCH) -> Recipe:
    """The PyTorch MaskGIT's recipe."""
    return Recipe(num_train_steps=1000, batch_size=batch_size, warmup_steps=100, precision=precision)


def batches(batch_size: int) -> Iterator[Batch]:
    """Random tokens with their places in the training stream."""
    draws, start = torch.Generator().manual_seed(0), 0
    while True:
        tokens = torch.randint(0, 1024, (batch_size, 256), generator=draws)
        places = torch.arange(start, start + batch_size)
        yield Batch(tokens, places % 1000, places, places, places)
        start += batch_size


def plain_attention(self: Attention, x_BLD: torch.Tensor) -> torch.Tensor:
    """Attention with its matrix of probabilities written out."""
    q, k, v = self.qkv(x_BLD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    mixed = F.dropout(weights, self.dropout, self.training) @ v
    return F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Plain:
    """The plain loop."""

    def __init__(self, model: Model) -> None:
        self.model = model.train()
        options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.96), "weight_decay": 0.045}
        self.optimizer = torch.optim.AdamW(model.parameters(), foreach=False, **options)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(self, batch: Batch) -> None:
        """One step."""
        ratio = np.cos(np.random.random() * np.pi / 2)
        count = max(1, int(np.ceil(ratio * batch.tokens_BL.shape[1])))
        places = torch.rand(batch.tokens_BL.shape).topk(count, dim=1).indices
        masked = torch.zeros_like(batch.tokens_BL, dtype=torch.bool).scatter(1, places, True)
        labels = torch.where(torch.rand(len(batch)) < 0.1, 1000, batch.labels_B)
        logits = self.model(batch.tokens_BL.masked_fill(masked, 1024), labels)
        loss = F.cross_entropy(logits[masked], batch.tokens_BL[masked], label_smoothing=0.1)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        for name, parameter in self.model.named_parameters():
            self.average[name].mul_(0.9999).add_(parameter.detach(), alpha=1e-4)
        loss.item()


class Original:
    """The original's model and moving average, stepped as its training script does; None of the files: not made."""

    def __init__(self, transformer: Any, average: Any, dropout: float) -> None:
        facts = {"vocab_size": FACTS["codebook_size"], "n_tokens": FACTS["num_tokens"], "n_classes": 1000}
        size = {"embed_dim": SIZE["dim"], "n_heads": SIZE["num_heads"], "n_layers": SIZE["num_layers"]}
        self.model = transformer.MaskTransformer(**facts, **size, dropout=dropout).train()
        options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.96), "weight_decay": 0.045}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.average = average.EMA(self.model.parameters(), decay=0.9999)

    def step(self, batch: Batch) -> None:
        """One step."""
        self.optimizer.zero_grad()
        masked = self.model.get_random_mask(*batch.tokens_BL.shape)
        inputs = batch.tokens_BL.masked_fill(masked, self.model.mask_token_id)
        logits = self.model(inputs, y=batch.labels_B, cond_drop_prob=0.1).flatten(0, 1)
        targets = batch.tokens_BL.masked_fill(~masked, -100).flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model.parameters())
        loss.item()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def steps_against(dropout: float, is_compiled: bool = False) -> None:
    """Alternates our step, the original's and the plain one."""
    torch.manual_seed(0)
    trainer = Trainer(Model(**FACTS, **SIZE, dropout=dropout), recipe(), compile_blocks=is_compiled)
    plain = Plain(Model(**FACTS, **SIZE, dropout=dropout))
    for module in plain.model.modules():
        if isinstance(module, Attention):
            module.forward = plain_attention.__get__(module)  # type: ignore[method-assign]
    masker = Masker(recipe(), 1024, 1000)
    sides: dict[str, Callable[[Batch], None]] = {"ours": lambda b: trainer.train_step(masker.split(b, 1))}
    sides["plain"] = plain.step
    files = [original(f"models/{name}.py") for name in ("stage2/transformer", "ema")]
    if None not in files:
        sides["original"] = Original(*files, dropout).step
    streams = {name: batches(BATCH) for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            batch = next(streams[name])
            spent = cpu_seconds(lambda b=batch, name=name: sides[name](b))  # type: ignore[misc]
            if number:
                times[name].append(spent)
    size = f"{SIZE['num_layers']} x {SIZE['dim']}, batch {BATCH} x 256 tokens"
    note = f"{size}; dropout {dropout} on both sides" + ("; ours with train.compile=true" if is_compiled else "")
    for peer in sorted(set(sides) - {"ours"}):
        name = f"train_step/dropout_{dropout}/{peer}" + ("/compiled" if is_compiled else "")
        figure(name, times["ours"], times[peer], "CPU s a step", note)


def stall() -> None:
    """Share of the time that steps wait for their batches, read from shards and masked ahead."""
    trainer = Trainer(Model(**FACTS, **SIZE, dropout=0.0), recipe())
    with tempfile.TemporaryDirectory() as folder:
        rng, layout = np.random.default_rng(0), Layout(codebook_size=1024, grid=(16, 16), num_variants=2)
        samples = Samples([str(i) for i in range(512)], np.arange(512), rng.integers(0, 1024, (512, 2, 16, 16)))
        write_manifest(Path(folder), layout, [write_shard(Path(folder), 0, layout, samples)], num_classes=1000)
        stream = Batches(TokenShards(folder), batch_size=BATCH, seed=0)
        ready = ahead(masked_steps(stream, Masker(recipe(), 1024, 1000), 1, torch.device("cpu")), 2)
        trainer.train_step(next(ready))
        began, waited = time.perf_counter(), 0.0
        for _ in range(12):
            asked = time.perf_counter()
            pieces = next(ready)
            waited += time.perf_counter() - asked
            trainer.train_step(pieces)
        share = waited / (time.perf_counter() - began)
    budget("data_wait_share", share, 0.02, "share of the time", "12 steps")


def main() -> None:
    """Prints one JSON object a figure."""
    torch.set_num_threads(1)
    steps_against(0.1)
    steps_against(0.0)
    steps_against(0.0, is_compiled=True)
    stall()


if __name__ == "__main__":
    main()
