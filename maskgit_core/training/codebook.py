"""How the codebook of a `vq` tokenizer is found and moves: k-means, moving averages, revival of codes out of use.

N latents, K codebook, D code width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_core.training.exchange import Exchange

#: Separate the random streams of one seed; the numbers themselves mean nothing.
HELD_OUT, KMEANS, REVIVAL, CROP = range(4)


def stream(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    """A random stream of its own for each (seed, purpose, index)."""
    return np.random.default_rng([seed, purpose, index])


class CodebookAverage:
    """Codes that follow the mean of the latents they are chosen for (van den Oord et al. 2017, appendix A.1).

    Args:
        codebook_KD: the tokenizer's codebook, changed in place.
        decay: of the moving averages.
        normalised: codes are of unit length.
        exchange: adds and gathers over processes.
        seed: of k-means and revival.
    """

    def __init__(self, codebook_KD: Tensor, decay: float, normalised: bool, exchange: Exchange, seed: int) -> None:
        self.codebook_KD, self.decay, self.normalised, self.exchange, self.seed = (
            codebook_KD, decay, normalised, exchange, seed
        )  # fmt: skip
        self.counts_K = torch.zeros(len(codebook_KD), device=codebook_KD.device)  # moving average of uses a batch
        self.sums_KD = torch.zeros_like(codebook_KD)  # moving average of the sum of latents a batch

    @torch.no_grad()
    def initialise(self, latents_ND: Tensor) -> None:
        """k-means on the latents of one batch; sets the moving averages to match."""
        codebook_KD, counts_K = k_means(
            self.exchange.gathered(latents_ND), len(self.counts_K), stream(self.seed, KMEANS)
        )
        self.counts_K.copy_(self.exchange.first(counts_K))
        self.sums_KD.copy_(self.exchange.first(codebook_KD) * self.counts_K[:, None])
        self._settle(codebook_KD)

    @torch.no_grad()
    def follow(self, tokens_N: Tensor, latents_ND: Tensor, revive_at: int | None, last_ND: Tensor) -> None:
        """Moves every code towards the mean of the latents it was chosen for.

        Args:
            tokens_N, latents_ND: of the step, on this process.
            revive_at: the step's number where codes out of use are to be revived, else None.
            last_ND: the latents of the step's last micro-batch, of which some become codes.
        """
        counts_K = self.exchange.total(torch.bincount(tokens_N, minlength=len(self.counts_K)).float())
        sums_KD = self.exchange.total(torch.zeros_like(self.sums_KD).index_add_(0, tokens_N, latents_ND))
        self.counts_K.lerp_(counts_K, 1 - self.decay)
        self.sums_KD.lerp_(sums_KD, 1 - self.decay)
        if revive_at is not None:
            self._revive(last_ND, float(self.exchange.processes * len(latents_ND)), revive_at)
        self._settle(self.sums_KD / self.counts_K.clamp_min(1e-5)[:, None])

    def _settle(self, codebook_KD: Tensor) -> None:
        self.codebook_KD.copy_(F.normalize(codebook_KD, dim=-1) if self.normalised else codebook_KD)

    def _revive(self, last_ND: Tensor, latents_a_step: float, step: int) -> None:
        """Moves codes used less than a tenth as often as the average onto random latents (Jukebox, section 3.2)."""
        fair = latents_a_step / len(self.counts_K)
        dead_J = (self.counts_K < 0.1 * fair).nonzero().flatten()
        latents_ND = self.exchange.gathered(last_ND)
        picks = stream(self.seed, REVIVAL, step).integers(len(latents_ND), size=len(dead_J))
        chosen_JD = latents_ND[torch.as_tensor(picks, device=latents_ND.device)]
        self.counts_K[dead_J] = 0.5 * fair
        self.sums_KD[dead_J] = chosen_JD * 0.5 * fair

    def state(self) -> dict[str, Any]:
        """The moving averages; the codebook itself is the tokenizer's."""
        return {"counts": self.counts_K, "sums": self.sums_KD}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`."""
        self.counts_K.copy_(state["counts"])
        self.sums_KD.copy_(state["sums"])


def k_means(
    latents_ND: Tensor, num_codes: int, rng: np.random.Generator, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random latents; returns centres (K, D) and the number of latents of each (K,).

    Where there are fewer latents than codes, latents are taken more than once.
    """
    picks = rng.choice(len(latents_ND), size=num_codes, replace=len(latents_ND) < num_codes)
    centres_KD = latents_ND[torch.as_tensor(picks, device=latents_ND.device)].clone()
    counts_K = torch.ones(num_codes, device=latents_ND.device)
    for _ in range(iterations):
        nearest_N = torch.addmm(centres_KD.square().sum(1), latents_ND, centres_KD.T, alpha=-2).argmin(1)
        counts_K = torch.bincount(nearest_N, minlength=num_codes).float()
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_N, latents_ND)
        centres_KD = torch.where(counts_K[:, None] > 0, sums_KD / counts_K.clamp_min(1)[:, None], centres_KD)
    return centres_KD, counts_K
