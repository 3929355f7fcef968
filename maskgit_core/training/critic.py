"""The loss of a critic: it is shown pictures that a generator has filled in, and is to find what was drawn.

Shapes: B samples of this process, L tokens, M masked ones, K codebook.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from maskgit_core import rng
from maskgit_core.decoding import draw_tokens
from maskgit_core.layers.critic import Critic
from maskgit_core.losses import weighted_mean
from maskgit_core.training.masked import MaskedBatch
from maskgit_core.training.meters import meter_sums


class CriticLoss(nn.Module):
    """Binary cross-entropy over all positions, the mask being what is to be found (Lezama et al. 2022, equation 5).

    Args:
        critic: what is trained.
        generator: a `Model` in eval mode on the device of the batches; it fills in what is masked.
        temperature: of its draws.
    """

    accuracy = "critic_accuracy"

    def __init__(self, critic: Critic, generator: Any, temperature: float) -> None:
        super().__init__()
        self.critic, self.temperature = critic, temperature
        self._generator = (generator,)  # in a tuple it is no part of what is trained, wrapped and saved

    @torch.no_grad()
    def filled_in(self, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_BL, masked_BL): the batch with the generator's draws in place of masks, and where those are.

        The draws of a sample are a function of its place in the training stream.
        """
        (generator,) = self._generator
        tokens_BL = batch.targets_M.view_as(batch.inputs_BL)  # of all positions, since the recipe's loss is on all
        masked_BL = batch.hidden_M.view_as(batch.inputs_BL) > 0
        logits_MK = generator.logits(generator.features(batch.inputs_BL, batch.labels_B, masked_BL)).float()
        seeds_B = torch.tensor(batch.dropout_seeds, device=tokens_BL.device)
        uniforms_BL = rng.uniforms(seeds_B, rng.TOKEN, tokens_BL.shape[1])
        drawn_M = draw_tokens(logits_MK, uniforms_BL[masked_BL], temperature=self.temperature)
        return tokens_BL.masked_scatter(masked_BL, drawn_M), masked_BL

    def forward(self, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, sums): this process's part of the global mean loss, and what the meters add up: (2 + 2 * buckets,)."""
        tokens_BL, masked_BL = self.filled_in(batch)
        odds_M = self.critic(tokens_BL, batch.labels_B).flatten()
        losses_M = F.binary_cross_entropy_with_logits(odds_M.float(), batch.hidden_M, reduction="none")
        loss = weighted_mean(losses_M, batch.weights_M, batch.total_weight)
        right_M = ((odds_M > 0) == masked_BL.flatten()).float()
        return loss, meter_sums(loss, right_M, torch.ones_like(right_M), batch.buckets_M)
