"""Held-out samples: a scattered share that no position of the training stream ever shows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgit_core import rng
from maskgit_core.batches.held_out import MAX_HELD_OUT, HeldOut, Split
from maskgit_core.errors import ConfigError
from maskgit_core.masking import training_masks


@settings(max_examples=60, deadline=None)
@given(num=st.integers(2, 400), share=st.floats(0.001, 0.9), seed=st.integers(0, 9))
def test_every_epoch_shows_the_others_once_and_the_held_out_never(num, share, seed):
    split = Split(num, 2, share)
    held = set(split.held_out().tolist())
    assert len(held) == num - split.num_training >= 1
    for epoch in (0, 3):
        positions = np.arange(epoch * split.num_training, (epoch + 1) * split.num_training)
        samples, variants = split.samples_at(seed, positions)
        assert sorted(samples.tolist()) == sorted(set(range(num)) - held)
        assert variants.min() >= 0 and variants.max() < 2


def test_they_are_scattered_over_a_data_set_sorted_by_class():
    classes = Split(50_000, 1, 0.02).held_out() // 500  # a hundred classes, one after the other
    assert len(classes) == 1000 and len(set(classes.tolist())) > 95
    assert len(Split(10**6, 2, 0.5).held_out()) == MAX_HELD_OUT


def test_a_share_that_leaves_nothing_is_one_line():
    assert Split(3, 1, 0.9).num_training == 1
    with pytest.raises(ConfigError, match=r"^train.held_out_share: 0.5 of 1 samples leaves nothing to train"):
        Split(1, 1, 0.5)


def test_likelihood_is_the_mean_over_masked_tokens():
    """Against a model whose distribution is known: token k has probability proportional to k + 1, whatever it sees."""

    class Known(torch.nn.Module):
        num_classes, mask_token_id = None, 5

        def features(self, tokens_BL, labels_B, wanted_BL):
            assert (tokens_BL[wanted_BL] == 5).all() and (tokens_BL[~wanted_BL] < 5).all()
            return tokens_BL[wanted_BL][:, None]

        def logits(self, features_MD):
            return torch.log(torch.arange(1.0, 6.0)).expand(len(features_MD), -1)

    tokens_NL = torch.randint(0, 5, (7, 12), generator=torch.Generator().manual_seed(0))
    found = HeldOut(tokens_NL, torch.full((7,), -1), np.arange(7), "cpu").nll(Known(), batch_size=3)
    seed = int(rng.sample_seeds(0, torch.tensor([-1]))[0])
    for ratio in (0.25, 0.5, 0.75, 1.0):
        masked_NL = training_masks(seed, torch.arange(7), torch.full((7,), ratio), 12)
        assert masked_NL.sum(1).tolist() == [round(12 * ratio)] * 7
        expected = -torch.log((tokens_NL[masked_NL] + 1) / 15).mean()
        assert math.isclose(found[f"held_out_nll_{ratio:.0%}".rstrip("%")], expected, rel_tol=1e-5)
