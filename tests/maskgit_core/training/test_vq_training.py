"""Laws of the small VQ tokenizer and of its training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskgit_core.errors import DataError
from maskgit_core.images.pixels import to_signed
from maskgit_core.tokenizers.vq import Tokenizer
from maskgit_core.training.tokenizer import (
    Recipe,
    Trainer,
    TrainingImages,
    held_out_ids,
    held_out_scores,
    k_means,
    learning_rate_factor,
)


class Stripes:
    """Grey pictures of bars, each at its own place: something a tokenizer can learn."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        image = np.zeros((16, 16, 1), np.uint8)
        image[:, i % 8 : i % 8 + 4] = 40 + 3 * i
        return SimpleNamespace(key=str(i), image=image, label=0)


def recipe(**changed):
    values = {"num_train_steps": 24, "batch_size": 16, "seed": 3, "lr": 3e-3, "warmup_steps": 5}
    values |= {"continuous_share": 5 / 24}
    values |= {"commitment_weight": 0.25, "edge_weight": 0.5, "codebook_decay": 0.9, "revive_every": 5, "flip": True}
    return Recipe(**(values | changed))


def small(seed=0, **options):
    torch.manual_seed(seed)
    return Tokenizer(**({"in_channels": 1, "codebook_size": 16, "code_dim": 4, "width": 8} | options))


@pytest.mark.parametrize(("factor", "channels"), [(2, 1), (4, 3), (8, 3), (16, 1)])
def test_any_grid_comes_back_in_shape(factor, channels):
    tokenizer = small(in_channels=channels, downsample_factor=factor, max_width=32)
    images = torch.rand(2, channels, 2 * factor, 3 * factor) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 2, 3) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < tokenizer.codebook_size
    assert tokenizer.decode(tokens).shape == images.shape


def test_tokens_name_the_nearest_code():
    tokenizer = small()
    latents = torch.randn(50, 4)
    assert torch.equal(tokenizer.nearest(latents), torch.cdist(latents, tokenizer.codebook).argmin(1))


def test_gradient_passes_straight_through():
    tokenizer = small()
    made = tokenizer(torch.rand(2, 1, 8, 8))
    made.images_BCHW.sum().backward()
    assert tokenizer.encoder[0].weight.grad.abs().sum() > 0


def test_wrong_sizes_and_channels_are_refused():
    with pytest.raises(DataError, match=r"^image size: found 9x8"):
        small().encode(torch.zeros(1, 1, 9, 8))
    with pytest.raises(DataError, match=r"^image channels: found 3"):
        small().encode(torch.zeros(1, 3, 8, 8))
    assert small(in_channels=3).encode(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 2)


def test_training_stopped_anywhere_goes_on_bit_for_bit(tmp_path):
    plan = recipe()
    images = TrainingImages(Stripes(), np.arange(64), plan)
    whole = Trainer(small(), plan)
    for pixels in images.since(0):
        whole.train_step(to_signed(pixels))
    for cut in (3, 5, 14):  # before, at and after the codebook is found
        first = Trainer(small(), plan)
        for pixels, _ in zip(images.since(0), range(cut), strict=False):
            first.train_step(to_signed(pixels))
        first.save(tmp_path / "state.pt")
        second = Trainer(small(seed=9), plan)
        second.restore(tmp_path / "state.pt")
        for pixels in images.since(cut):
            second.train_step(to_signed(pixels))
        for (name, a), b in zip(
            whole.tokenizer.state_dict().items(), second.tokenizer.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), f"cut at {cut}: {name}"


def test_training_learns_and_uses_its_codes():
    plan = recipe(num_train_steps=100, continuous_share=0.2, flip=False)
    trainer, dataset = Trainer(small(), plan), Stripes()
    pixels = torch.from_numpy(np.stack([dataset[i].image for i in range(64)])).permute(0, 3, 1, 2)
    for batch in TrainingImages(dataset, np.arange(64), plan).since(0):
        trainer.train_step(to_signed(batch))
    scores = held_out_scores(trainer.tokenizer.eval(), to_signed(pixels))
    mean_only = 10 * torch.log10(4 / to_signed(pixels).var((1, 2, 3), unbiased=False)).mean()
    assert scores["psnr"] > float(mean_only) + 3
    assert scores["code_usage"] > 0.5


def test_readers_ahead_change_nothing():
    plan = recipe(num_train_steps=7)
    alone, helped = (TrainingImages(Stripes(), np.arange(50), plan, workers) for workers in (0, 3))
    pairs = list(zip(alone.since(2), helped.since(2), strict=True))
    assert len(pairs) == 5 and all(torch.equal(a, b) for a, b in pairs)


def test_held_out_images_are_kept_from_training():
    train, held = held_out_ids(seed=1, num_samples=100, num_held_out=500)
    assert len(held) == 10 and sorted([*train, *held]) == list(range(100))


def test_k_means_finds_separated_groups():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    for seed in range(20):  # Lloyd may keep two starts in one group; the best of a few must find all three
        found, counts = k_means(points, 3, np.random.default_rng(seed))
        assert int(counts.sum()) == 120
        if torch.cdist(centres, found).min(1).values.max() < 0.2:
            return
    pytest.fail("no start found the three groups")


def test_k_means_with_fewer_points_than_codes():
    found, _ = k_means(torch.randn(3, 2), 8, np.random.default_rng(0))
    assert found.shape == (8, 2) and bool(found.isfinite().all())


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(step, 10, 100) for step in range(101)]
    assert factors[9] == 1.0 and factors[100] == 0.0
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:], reverse=True)
