"""The stage `train_critic` and what it makes: it learns, resumes exactly, and is what `sampler=token_critic` asks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_inputs import make_inputs
from stage_calls import call

from experiments.config.specs import Input, SamplerSpec
from experiments.running.attempt import Attempt
from experiments.running.components import load_model
from experiments.stages import sample, train_critic
from experiments.store.journal import read_points
from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.layers.critic import Critic
from maskgit_core.sample_files import read_piece
from maskgit_core.samplers.token_critic import Sampler
from maskgit_core.shards.format import Layout
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from maskgit_core.trained import load_critic
from maskgit_core.training.checkpoints import load_tensors

VALUES: dict[str, Any] = {
    "num_train_steps": 60, "batch_size": 16, "lr": 1e-2, "lr_schedule": "constant", "warmup_steps": 1,
    "ema_decay": None, "label_drop": 0.0, "log_every": 1, "checkpoint_every": 20, "num_workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Input, Input]:
    return make_inputs(tmp_path_factory)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, generator: tuple[Input, Input]) -> Input:
    """Pictures of one token each, which the untrained generator will not draw: easy for a critic."""
    folder, grid = tmp_path_factory.mktemp("cache"), generator[0].facts["grid"]
    layout = Layout(codebook_size=generator[0].facts["codebook_size"], grid=(grid[0], grid[1]), num_variants=1)
    tokens = np.broadcast_to((np.arange(60) % 3)[:, None, None, None], (60, 1, *layout.grid)).copy()
    samples = Samples([f"s{i}" for i in range(60)], np.arange(60) % 3, tokens)
    write_manifest(folder / "files", layout, [write_shard(folder / "files", 0, layout, samples)], num_classes=3)
    return Input("cache_tokens", "tokens", folder, "f" * 64, {}, {})


def trained(folder: Path, generator: Input, cache: Input, number: int = 1, **changed: Any) -> Attempt:
    attempt = Attempt(folder, number)
    call(train_critic, attempt, model=generator, tokens=cache, **{**VALUES, **changed})
    attempt.close()
    return attempt


def as_input(attempt: Attempt) -> Input:
    """The attempt's outputs as a later step sees them."""
    if not (attempt.folder / "files").exists():
        (attempt.folder / "files").symlink_to(attempt.files)
    return Input("train_critic", "critic", attempt.folder, "c" * 64, {}, {})


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory, generator: tuple[Input, Input], cache: Input) -> Input:
    return as_input(trained(tmp_path_factory.mktemp("critic"), generator[0], cache))


@pytest.mark.parametrize("trunk", ["from_generator", "fresh", "generator"])
def test_it_learns_what_was_drawn(tmp_path: Path, generator: tuple[Input, Input], cache: Input, trunk: str) -> None:
    attempt = trained(tmp_path, generator[0], cache, trunk=trunk)
    points = {(p.metric, p.step): p.value for p in read_points(tmp_path)}
    assert points["loss", 1] == pytest.approx(np.log(2), abs=1e-6), "the head begins at zero"
    last = range(51, 61)
    assert np.mean([points["loss", step] for step in last]) < 0.6
    assert np.mean([points["critic_accuracy", step] for step in last]) > 0.7
    made, there = load_critic(attempt.files), load_model(generator[0])
    same = all(torch.equal(a, b) for a, b in zip(made.trunk.parameters(), there.parameters(), strict=True))
    assert same == (trunk == "generator"), "a second head leaves the transformer as it was"
    if trunk != "generator":  # one linear head on an untrained transformer finds little
        wrong = torch.arange(2)[:, None].repeat(1, there.num_tokens)
        wrong[:, 5] = 9
        odds = made.log_odds(wrong, torch.arange(2))
        assert (odds[:, 5] > odds[:, torch.arange(there.num_tokens) != 5].mean(1)).all()


def test_stopped_and_continued_gives_the_same_bits(
    tmp_path: Path, generator: tuple[Input, Input], cache: Input, critic: Input
) -> None:
    trained(tmp_path, generator[0], cache, num_train_steps=40)
    again = trained(tmp_path, generator[0], cache, number=2)  # the checkpoint of step 40 is there
    assert {p.step for p in read_points(tmp_path) if p.metric == "loss"} == set(range(1, 61))
    one, other = (load_tensors(files / "model.safetensors")[0] for files in (again.files, critic.files))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_samples_are_the_same_for_any_batch_size_and_other_than_without(
    tmp_path: Path, generator: tuple[Input, Input], critic: Input
) -> None:
    def tokens(name: str, **changed: Any) -> np.ndarray:
        attempt = Attempt(tmp_path / name, 1)
        sampler = changed.pop("sampler", "token_critic")
        sample.run(attempt, model=generator[0], tokenizer=generator[1], sampler=SamplerSpec(sampler, {"num_steps": 4}),
                   critic=critic, num_samples=24, **changed)  # fmt: skip
        return read_piece(attempt.files / "tokens.npz")["tokens"]

    whole = tokens("whole")
    assert np.array_equal(tokens("one", batch_size=1, piece_size=7), whole)
    assert not np.array_equal(tokens("other", sampler="self_correction"), whole)


def test_without_one_the_sampler_refuses(generator: tuple[Input, Input]) -> None:
    model, seeds = load_model(generator[0]), rng.sample_seeds(0, torch.arange(2))
    with pytest.raises(ConfigError, match=r"asks a trained critic .* and none is given"):
        Sampler(num_steps=2).sample(model, torch.tensor([0, 1]), grid=model.grid, seeds_B=seeds)


def test_its_tokens_are_kept_by_their_log_odds(generator: tuple[Input, Input]) -> None:
    """Of what was drawn at the first step, the positions with the lowest log-odds stay."""
    model = load_model(generator[0])
    seen: list[torch.Tensor] = []

    class Judge(Critic):
        def log_odds(self, tokens_BL: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
            seen.append(tokens_BL)
            assert not (tokens_BL == model.mask_token_id).any(), "it is shown no masks"
            return torch.arange(tokens_BL.shape[1], dtype=torch.float32).expand(tokens_BL.shape)

    seeds = rng.sample_seeds(0, torch.arange(4))
    sampler = Sampler(num_steps=4, choice_temperature=0.0)
    tokens = sampler.sample(
        model, torch.arange(4) % 3, grid=model.grid, seeds_B=seeds, critic=Judge(model, is_frozen=True)
    )
    assert len(seen) == 3, "the last step asks nobody"
    counts = sampler.num_steps, model.num_tokens
    kept = model.num_tokens - int(np.floor(counts[1] * np.cos(np.pi / 2 / counts[0])))
    assert torch.equal(tokens[:, :kept], seen[0][:, :kept]) and not torch.equal(tokens, seen[0])
