"""Schedules, masks and streams: golden values and the laws that resume and any batch size rest on."""

import pytest
import torch

from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.guidance import guidance_scale, guided
from maskgit_core.losses import token_cross_entropy, token_weights, weighted_mean
from maskgit_core.masking import SCHEDULES, dropped_labels, mask_ratio, masked_counts, training_masks, training_ratios

GOLDEN_COUNTS = {
    ("cosine", 256, 8): "251 236 212 181 142 97 49 0",
    ("cosine", 256, 12): "253 247 236 221 203 181 155 128 97 66 33 0",
    ("cosine", 256, 16): "254 251 244 236 225 212 197 181 162 142 120 97 74 49 25 0",
    ("cosine", 1024, 12): "1015 989 946 886 812 724 623 512 391 265 133 0",
    ("arccos", 256, 8): "235 214 193 170 145 117 82 0",
    ("square", 256, 8): "252 240 220 192 156 112 60 0",
    ("cubic", 256, 8): "255 252 242 224 193 148 84 0",
    ("linear", 256, 8): "224 192 160 128 96 64 32 0",
    ("sqrt", 256, 8): "165 128 99 74 53 34 16 0",
    ("log", 256, 8): "96 64 45 32 21 13 6 0",
    ("exp", 256, 8): "254 252 248 240 224 192 128 0",
}


@pytest.mark.parametrize(("schedule", "num_tokens", "num_steps"), GOLDEN_COUNTS)
def test_published_mask_counts(schedule: str, num_tokens: int, num_steps: int) -> None:
    counts = masked_counts(torch.tensor([num_tokens]), num_steps, schedule)[:, 0].tolist()
    assert counts == [int(n) for n in GOLDEN_COUNTS[schedule, num_tokens, num_steps].split()]


def test_published_mask_counts_of_halton_maskgit() -> None:
    counts = masked_counts(torch.tensor([256]), 8, "arccos", rounding="revealed_down")[:, 0].tolist()
    assert counts == [236, 215, 194, 171, 146, 118, 83, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_and_counts_reveal_every_token(schedule: str) -> None:
    ratios = mask_ratio(torch.linspace(0, 1, 101), schedule, 256, power=1.5)
    assert (
        (ratios.diff() <= 0).all() and ratios.min() >= 1e-6 and ratios[0] == (1 - 1 / 256 if schedule == "exp" else 1)
    )
    unknown = torch.tensor([1, 3, 12, 49, 256])
    counts = masked_counts(unknown, 12, schedule, power=1.5)
    assert (counts[-1] == 0).all() and (torch.cat([unknown[None], counts]).diff(dim=0) <= 0).all()
    assert (counts[0] < unknown).all()


def test_unknown_schedule_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no mask schedule 'cosin'; one of \[cosine"):
        mask_ratio(torch.zeros(1), "cosin", 16)


def test_masks_depend_on_seed_and_number_alone() -> None:
    numbers = torch.arange(64)
    ratios = training_ratios(5, numbers, "cosine", 49)
    masks = training_masks(5, numbers, ratios, 49)
    some = torch.tensor([40, 3, 63])
    assert torch.equal(training_ratios(5, some, "cosine", 49), ratios[some])
    assert torch.equal(training_masks(5, some, ratios[some], 49), masks[some])
    assert not torch.equal(training_masks(6, numbers, ratios, 49), masks)
    assert torch.equal(masks.sum(1), torch.ceil(ratios * 49).long())


def test_one_ratio_per_batch_and_bernoulli_masks() -> None:
    numbers = torch.arange(4096)
    ratios = training_ratios(0, numbers, "arccos", 16, samples_per_draw=8)
    assert (ratios.view(-1, 8) == ratios.view(-1, 8)[:, :1]).all() and ratios.unique().numel() > 500
    masks = training_masks(0, numbers, torch.full((4096,), 0.3), 16, kind="bernoulli")
    assert abs(masks.float().mean().item() - 0.3) < 0.01
    assert masks.sum(1).unique().numel() > 5
    exact = training_masks(0, numbers, torch.full((4096,), 0.3), 16, rounding="round")
    assert (exact.sum(1) == 5).all()
    assert (exact.float().mean(0) - 5 / 16).abs().max() < 0.04


def test_label_drop_has_the_asked_share_and_leaves_the_labels_alone() -> None:
    labels = torch.arange(5000) % 10
    before = labels.clone()
    dropped = dropped_labels(1, torch.arange(5000), labels, 10, 0.1)
    assert torch.equal(labels, before)
    assert abs((dropped == 10).float().mean().item() - 0.1) < 0.02
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    assert torch.equal(dropped_labels(1, torch.arange(5000), labels, 10, 0.0), labels)


def test_streams_are_uniform_independent_and_addressable() -> None:
    seeds = rng.sample_seeds(0, torch.arange(2000))
    draws = rng.uniforms(seeds, rng.MASK, 50)
    assert draws.min() > 0 and draws.max() < 1
    assert abs(draws.mean().item() - 0.5) < 0.005 and abs(draws.var().item() - 1 / 12) < 0.002
    other = rng.uniforms(seeds, rng.TOKEN, 50)
    later = rng.uniforms(seeds, rng.MASK, 50, counter=1)
    for second in (other, later, draws.roll(1, 0), draws.roll(1, 1)):
        correlation = torch.corrcoef(torch.stack([draws.flatten(), second.flatten()]))[0, 1].abs().item()
        assert correlation < 0.015
    assert torch.equal(rng.uniforms(seeds[7:9], rng.MASK, 50), draws[7:9])
    assert torch.equal(rng.uniforms(seeds, rng.MASK, 20), draws[:, :20])
    noise = rng.gumbels(seeds, rng.CHOICE, 50)
    assert abs(noise.mean().item() - 0.5772) < 0.02 and abs(noise.var().item() - 1.6449) < 0.05
    assert len({rng.step_seed(3, step, rank) for step in range(50) for rank in range(4)}) == 200


GOLDEN_GUIDANCE = {
    "linear-r": [1.0391, 1.1562, 1.3438, 1.5859, 1.8906, 2.2422, 2.6172, 3.0],
    "linear": [1, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75],
    "power-cosine": [1, 1.0002, 1.0048, 1.0364, 1.1503, 1.4348, 1.9596, 2.6281],
    "constant": [3.0] * 8,
}


@pytest.mark.parametrize("schedule", GOLDEN_GUIDANCE)
def test_published_guidance_curves(schedule: str) -> None:
    counts = masked_counts(torch.tensor([256]), 8, "cosine")[:, 0].tolist()
    curve = [guidance_scale(schedule, 3.0, t, 8, (256 - counts[t]) / 256, power=2.5) for t in range(8)]
    assert curve == pytest.approx(GOLDEN_GUIDANCE[schedule], abs=6e-5)


def test_guidance_extrapolates_from_the_unconditional_side() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guided(cond, uncond, 1.0), cond)
    assert torch.equal(guided(cond, uncond, 0.0), uncond)
    assert guided(cond, uncond, 3.0).tolist() == [3.0, -2.0]


def test_loss_forms_and_parts_that_add_up() -> None:
    logits, targets = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0])
    masked = torch.tensor([[True, False, True], [False, False, True]])
    assert token_weights(masked, "masked").tolist() == [[1, 0, 1], [0, 0, 1]]
    assert token_weights(masked, "all").sum() == 6
    assert token_weights(masked, "weighted", 0.1).sum().item() == pytest.approx(3.3)
    losses = token_cross_entropy(logits, targets, 0.1)
    log_p = logits.log_softmax(-1)
    by_hand = -(0.9 * log_p[range(6), targets] + 0.1 * log_p.mean(-1))
    assert torch.allclose(losses, by_hand, atol=1e-6)
    weights = token_weights(masked, "weighted").flatten()
    whole = weighted_mean(losses, weights, weights.sum())
    parts = weighted_mean(losses[:2], weights[:2], weights.sum()) + weighted_mean(
        losses[2:], weights[2:], weights.sum()
    )
    assert whole.item() == pytest.approx(parts.item(), abs=1e-6)
