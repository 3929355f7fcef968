"""What a training tells of itself, against the same figures worked out by hand from its model and masks."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from maskgit_core import rng
from maskgit_core.losses import token_weights
from maskgit_core.masking import exact_counts, mask_ratio
from maskgit_core.models.prenorm import Model
from maskgit_core.training.masked import Masker
from maskgit_core.training.recipe import Recipe
from maskgit_core.training.trainer import Trainer

CLASSES, K, L, B = 3, 7, 16, 12


def recipe(**changed):
    values = {
        "num_train_steps": 5, "batch_size": B, "lr": 1e-2, "lr_schedule": "constant", "lr_end": 0.0, "warmup_steps": 0,
        "optimizer": "adamw", "weight_decay": 0.0, "betas": (0.9, 0.96), "grad_clip": 0.01, "label_drop": 0.4,
        "label_smoothing": 0.1, "loss_on": "masked", "unmasked_weight": 0.1, "mask_schedule": "linear",
        "mask_schedule_power": 1.0, "mask_kind": "exact", "mask_rounding": "ceil", "mask_ratio_per": "sample",
        "min_mask_ratio": 0.0, "ema_decay": 0.9, "ema_warmup": "none", "precision": "fp32", "seed": 4,
    }  # fmt: skip
    return Recipe(**{**values, **changed})


def by_hand(model, tokens_BL, labels_B, masked_BL, asked):
    """Loss and gradient norm straight from the definitions, and the predictions."""
    logits_BLK = model(tokens_BL.masked_fill(masked_BL, K), labels_B)
    wanted_BLK = F.one_hot(tokens_BL, K) * (1 - asked.label_smoothing) + asked.label_smoothing / K
    losses_BL = -(wanted_BLK * logits_BLK.log_softmax(-1)).sum(-1)
    unmasked = {"masked": 0.0, "all": 1.0, "weighted": asked.unmasked_weight}[asked.loss_on]
    weights_BL = torch.where(masked_BL, 1.0, unmasked)
    loss = (losses_BL * weights_BL).sum() / weights_BL.sum()
    model.zero_grad()
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
    return loss.item(), norm.item(), logits_BLK.argmax(-1)


@pytest.mark.parametrize("loss_on", ["masked", "all", "weighted"])
@pytest.mark.parametrize("pieces", [1, 5])
def test_figures_are_those_of_their_definitions(loss_on, pieces):
    asked = recipe(loss_on=loss_on)
    torch.manual_seed(0)
    model = Model(codebook_size=K, num_tokens=L, num_classes=CLASSES, dim=16, num_layers=1, num_heads=2, dropout=0.0)
    trainer = Trainer(model, asked)
    masker = Masker(asked, model.mask_token_id, model.null_label)
    draws = torch.Generator().manual_seed(1)
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, right, hidden = [], torch.zeros(4), torch.zeros(4)
    for step in range(3):
        tokens_BL, labels_B = torch.randint(0, K, (B, L), generator=draws), torch.arange(B) % CLASSES
        numbers_B = torch.arange(step * B, (step + 1) * B)
        batch = SimpleNamespace(tokens_BL=tokens_BL, labels_B=labels_B, indices_B=numbers_B)
        parts = masker.split(batch, pieces)
        seen_B = torch.cat([part.labels_B for part in parts])
        assert set(seen_B[seen_B != labels_B].tolist()) <= {CLASSES}
        ratios_B, masked_BL = masker.masks(numbers_B, L)
        loss, norm, guesses_BL = by_hand(copy.deepcopy(model), tokens_BL, seen_B, masked_BL, asked)
        losses.append(loss)
        for b in range(B):
            bucket = min(int(ratios_B[b] * 4), 3)
            hidden[bucket] += masked_BL[b].sum()
            right[bucket] += ((guesses_BL[b] == tokens_BL[b]) & masked_BL[b]).sum()
        trainer.train_step(parts)
        averages = {name: 0.9 * averages[name] + 0.1 * p.detach() for name, p in model.named_parameters()}
    found = trainer.meters.read()
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-4), "of the last step, before clipping"
    assert found["masked_accuracy"] == pytest.approx(float(right.sum() / hidden.sum()))
    for bucket in range(4):
        assert found[f"masked_accuracy_q{bucket + 1}"] == pytest.approx(float(right[bucket] / hidden[bucket]))
    apart = torch.sqrt(sum(((averages[n] - p.detach()) ** 2).sum() for n, p in model.named_parameters()))
    size = torch.sqrt(sum((p.detach() ** 2).sum() for p in model.parameters()))
    assert float(trainer.ema.distance(trainer.parameters)) == pytest.approx(float(apart / size), rel=1e-4)
    assert trainer.meters.read() == {}, "read once"


def test_one_ratio_a_batch_and_small_ratios_raised():
    one = Masker(recipe(mask_ratio_per="batch"), K, CLASSES)
    ratios_B, masked_BL = one.masks(torch.arange(B, 3 * B), L)
    assert len(set(ratios_B[:B].tolist())) == len(set(ratios_B[B:].tolist())) == 1 and ratios_B[0] != ratios_B[B]
    counts_B = torch.ceil(ratios_B * L - 1e-9).long()
    assert torch.equal(masked_BL.sum(1), counts_B)
    raised_B, _ = Masker(recipe(min_mask_ratio=0.5), K, CLASSES).masks(torch.arange(500), L)
    plain_B, _ = Masker(recipe(), K, CLASSES).masks(torch.arange(500), L)
    assert torch.equal(raised_B, plain_B.clamp(min=0.5)) and (plain_B < 0.5).any()
    assert float(mask_ratio(torch.tensor(0.25), "linear", L)) == 0.75


def test_a_state_goes_to_an_optimizer_that_decays_other_parameters():
    """Moments belong to parameters, in whatever order an optimizer groups them."""
    torch.manual_seed(0)
    size = {"codebook_size": K, "num_tokens": L, "num_classes": CLASSES, "dim": 16, "num_layers": 1, "num_heads": 2}
    first = Trainer(Model(**size), recipe())
    masker = Masker(recipe(), K, CLASSES)
    batch = SimpleNamespace(
        tokens_BL=torch.randint(0, K, (B, L)), labels_B=torch.arange(B) % CLASSES, indices_B=torch.arange(B)
    )
    first.train_step(masker.split(batch, 1))
    second = Trainer(Model(**size), recipe(decay_on="matrices"))
    second.load_state(*first.state(first.meters.totals()), "here")
    for one, other in zip(first.parameters.values(), second.parameters.values(), strict=True):
        assert torch.equal(one, other)
        for kind, value in first.optimizer.state[one].items():
            assert torch.equal(value, second.optimizer.state[other][kind])
    assert second.step == 1 and second.meters.totals() == first.meters.totals()


@pytest.mark.parametrize("loss_on", ["masked", "all", "weighted"])
@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
@pytest.mark.parametrize("rounding", ["ceil", "round"])
def test_each_process_masks_its_own_samples_and_knows_the_weight_of_all(loss_on, kind, rounding):
    """Bit for bit what masking the whole global batch gives, however it is cut over processes and micro-batches."""
    masker = Masker(recipe(loss_on=loss_on, mask_kind=kind, mask_rounding=rounding), K, CLASSES)
    numbers_G = torch.arange(2 * B, 3 * B)
    ratios_G, masked_GL = masker.masks(numbers_G, L)
    whole = token_weights(masked_GL, loss_on, masker.recipe.unmasked_weight).sum().item()
    if kind == "exact":  # the definition, with ranks in place of a scatter
        draws_GL = rng.uniforms(rng.sample_seeds(masker.recipe.seed, numbers_G), rng.MASK, L)
        counts_G = exact_counts(ratios_G, L, rounding)
        ranks_GL = draws_GL.argsort(dim=1, stable=True).argsort(dim=1)
        assert torch.equal(masked_GL, ranks_GL < counts_G[:, None])
    tokens_GL = torch.randint(0, K, (B, L), generator=torch.Generator().manual_seed(3))
    for own in numbers_G.tensor_split(2):
        rows = own - numbers_G[0]
        batch = SimpleNamespace(tokens_BL=tokens_GL[rows], labels_B=torch.zeros_like(own), indices_B=own)
        parts = masker.split(batch, 3)
        assert {part.total_weight for part in parts} == {whole}
        wanted_BL = tokens_GL[rows].masked_fill(masked_GL[rows], K)
        assert torch.equal(torch.cat([part.inputs_BL for part in parts]), wanted_BL)
