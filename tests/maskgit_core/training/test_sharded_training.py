"""A training divided among two processes is that of one: losses, weights, moments, average, what goes on from it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskgit_core.batches.tokens import Batch
from maskgit_core.errors import ConfigError
from maskgit_core.models.prenorm import Model
from maskgit_core.training.checkpoints import load_tensors, save_tensors
from maskgit_core.training.masked import Masker
from maskgit_core.training.recipe import Recipe
from maskgit_core.training.trainer import Trainer

BATCH, STEPS, LATER = 8, 3, 2
FACTS = {"codebook_size": 30, "num_tokens": 9, "num_classes": 5}


def trainer(**how):
    torch.manual_seed(3)
    recipe = Recipe(
        num_train_steps=50, batch_size=BATCH, lr=1e-3, warmup_steps=2, grad_clip=1.0, ema_decay=0.9, weight_decay=0.1
    )
    # widths that two processes cannot divide evenly
    return Trainer(Model(**FACTS, dim=36, num_layers=2, num_heads=3, dropout=0.1), recipe, **how)


def pieces(recipe, step, rank=0, processes=1):
    """A step's micro-batches of one process: the same samples and masks for any number of processes."""
    draws = torch.Generator().manual_seed(step)
    tokens, labels = torch.randint(0, 30, (BATCH, 9), generator=draws), torch.arange(BATCH) % 5
    places = torch.arange(step * BATCH, (step + 1) * BATCH)
    mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    batch = Batch(tokens[mine], labels[mine], places[mine], places[mine], places)
    return Masker(recipe, 30, 5).split(batch, 2)


def trained(own, first, steps, rank=0, processes=1):
    losses = []
    for step in range(first, first + steps):
        own.train_step(pieces(own.recipe, step, rank, processes))
        losses.append(own.meters.read()["loss"])
    return losses


def written(own, path, losses):
    tensors, facts = own.state()
    weights = {f"{k}.{n}": t for k, found in own.weights().items() for n, t in found.items()}
    if tensors:
        save_tensors(path, tensors, facts | {"losses": losses})
        save_tensors(path.with_name("w-" + path.name), weights, {})


def close(one, other):
    mine, theirs = load_tensors(one)[0], load_tensors(other)[0]
    assert mine.keys() == theirs.keys() and mine
    for name, value in mine.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_two_processes_that_share_the_weights_train_as_one(tmp_path):
    alone = trainer()
    losses = trained(alone, 0, STEPS)
    written(alone, tmp_path / "alone-3", losses)
    later = trained(alone, STEPS, LATER)
    written(alone, tmp_path / "alone-5", later)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    for name, expected in (("3", losses), ("5", later), ("resumed-5", later)):
        seen = load_tensors(tmp_path / f"shared-{name}")[1]["losses"]
        assert seen == pytest.approx(expected, rel=1e-5)
        close(tmp_path / f"alone-{name[-1]}", tmp_path / f"shared-{name}")
        close(tmp_path / f"w-alone-{name[-1]}", tmp_path / f"w-shared-{name}")
    # one process goes on from what two saved
    tensors, facts = load_tensors(tmp_path / "shared-3")
    again = trainer()
    again.load_state(tensors, facts, "shared-3")
    assert trained(again, STEPS, LATER) == pytest.approx(later, rel=1e-5)


def test_one_process_has_nothing_to_divide():
    own = trainer(fsdp=True)
    assert not own.is_sharded
    assert trained(own, 0, 1) == trained(trainer(), 0, 1)


def test_what_needs_whole_weights_is_refused():
    with pytest.raises(ConfigError, match=r"train\.fsdp: true with optimizer=muon"):
        Trainer(
            Model(**FACTS, dim=16, num_layers=1, num_heads=2), Recipe(num_train_steps=1, optimizer="muon"), fsdp=True
        )


def main(folder):
    """One of two processes."""
    torch.set_num_threads(1)
    own = trainer(fsdp=True)
    rank = own.accelerator.process_index
    assert own.is_sharded
    held = sum(p.to_local().numel() for p in own.parameters.values())
    assert held < 0.6 * sum(p.numel() for p in own.parameters.values())
    losses = trained(own, 0, STEPS, rank, 2)
    written(own, folder / "shared-3", losses)
    later = trained(own, STEPS, LATER, rank, 2)
    written(own, folder / "shared-5", later)
    own.accelerator.wait_for_everyone()
    again = trainer(fsdp=True)
    again.load_state(*load_tensors(folder / "shared-3"), "shared-3")
    written(again, folder / "shared-resumed-5", trained(again, STEPS, LATER, rank, 2))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
