"""Quantizers of image tokenizers: nearest code, the sign of each channel, rounding to a grid.

All three give a codebook (K, D), a token for every latent and a place at which the latents are compared with the
codes; `vq` learns its codebook, the others have a fixed one, listed in the order of their tokens.

N latents, D code width, K codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from maskgit_core.refusals import check_quantizer

#: `vq`: van den Oord et al. 2017; `lfq`: Yu et al. 2024 (https://arxiv.org/abs/2310.05737);
#: `fsq`: Mentzer et al. 2024 (https://arxiv.org/abs/2309.15505).
Kind = Literal["vq", "lfq", "fsq"]


class Reconstruction(NamedTuple):
    """The outputs of one forward pass that a training step needs."""

    images_BCHW: Tensor  # about [-1, 1], not clamped
    tokens_Bhw: Tensor  # int64 in [0, K)
    latents_ND: Tensor  # where they are compared with the codes, with gradient
    codes_ND: Tensor  # the codebook vectors chosen for them


class Quantizer:
    """A quantizer: latents to tokens and back.

    Args:
        kind: see `Kind`.
        codebook_size: number of codes, K.
        code_dim: width of a code of `vq`; the others' follows from K and `levels`.
        normalised: `vq`: latents and codes are scaled to unit length before they are compared and decoded
            (Yu et al. 2022, https://arxiv.org/abs/2110.04627).
        levels: `fsq`: values that each channel may take; their product is K.

    Raises:
        ConfigError: K does not fit the kind; names the option.
    """

    def __init__(
        self, kind: Kind, codebook_size: int, code_dim: int, normalised: bool = False, levels: Sequence[int] = ()
    ) -> None:
        check_quantizer(kind, codebook_size, normalised, levels)
        self.kind, self.codebook_size, self.normalised, self.levels = kind, codebook_size, normalised, tuple(levels)
        self.code_dim = {"vq": code_dim, "lfq": codebook_size.bit_length() - 1, "fsq": len(self.levels)}[kind]

    def codebook(self) -> Tensor:
        """The codes of `lfq` and `fsq`, or random ones to begin `vq` with: float32 (K, D)."""
        if self.kind == "vq":
            return torch.randn(self.codebook_size, self.code_dim)
        digits_KD = self._digits(torch.arange(self.codebook_size))
        if self.kind == "lfq":
            return digits_KD.float() * 2 - 1
        half_D = torch.tensor([level // 2 for level in self.levels])
        return (digits_KD - half_D) / half_D

    def place(self, latents_ND: Tensor) -> Tensor:
        """Latents where they are compared with the codes: of unit length (normalised), within the grid (`fsq`)."""
        if self.kind == "fsq":
            return self._bounded(latents_ND)
        return F.normalize(latents_ND.float(), dim=-1) if self.normalised else latents_ND

    def codes(self, codebook_KD: Tensor) -> Tensor:
        """The codes of tokens, (K, D)."""
        return F.normalize(codebook_KD.float(), dim=-1) if self.normalised else codebook_KD

    def tokens(self, placed_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Index of the nearest code of each placed latent, int64 (N,); the lower of two that are equally near."""
        if self.kind == "vq":
            return nearest(placed_ND, self.codes(codebook_KD))
        if self.kind == "lfq":
            return self._numbers((placed_ND > 0).long())
        half_D = torch.tensor([level // 2 for level in self.levels], device=placed_ND.device)
        return self._numbers((placed_ND * half_D).round().long() + half_D)

    def reconstruction(
        self, latents_BDhw: Tensor, codebook_KD: Tensor, decoder: Callable[[Tensor], Tensor], quantised: bool
    ) -> Reconstruction:
        """Decodes the codes of latents; the gradient passes straight through the quantisation, which is float32.

        With `quantised=False` the decoder sees the placed latents themselves (tokens are all 0).
        """
        b, _, h, w = latents_BDhw.shape
        with torch.autocast(latents_BDhw.device.type, enabled=False):
            placed_ND = self.place(rearrange(latents_BDhw.float(), "b d h w -> (b h w) d"))
            if quantised:
                tokens_N = self.tokens(placed_ND.detach(), codebook_KD.detach())
                codes_ND = self.codes(codebook_KD)[tokens_N]
                seen_ND = through(placed_ND, codes_ND)
            else:
                tokens_N = torch.zeros(b * h * w, dtype=torch.long, device=latents_BDhw.device)
                codes_ND, seen_ND = placed_ND.detach(), placed_ND
        images_BCHW = decoder(rearrange(seen_ND, "(b h w) d -> b d h w", b=b, h=h, w=w))
        return Reconstruction(images_BCHW, tokens_N.view(b, h, w), placed_ND, codes_ND)

    def _bounded(self, latents_ND: Tensor) -> Tensor:
        """Each channel squeezed so that rounding times L // 2 gives L values (FSQ's section 3.1); about [-1, 1]."""
        levels_D = torch.tensor(self.levels, device=latents_ND.device, dtype=torch.float32)
        reach_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = torch.where(levels_D % 2 == 0, 0.5, 0.0)
        shift_D = (offset_D / reach_D).atanh()
        return ((latents_ND.float() + shift_D).tanh() * reach_D - offset_D) / (levels_D / 2).floor()

    def _radices(self) -> Tensor:
        return torch.tensor(self.levels if self.kind == "fsq" else [2] * self.code_dim)

    def _digits(self, tokens_N: Tensor) -> Tensor:
        radices_D = self._radices()
        return tokens_N[:, None] // (radices_D.cumprod(0) // radices_D) % radices_D

    def _numbers(self, digits_ND: Tensor) -> Tensor:
        radices_D = self._radices().to(digits_ND.device)
        return (digits_ND * (radices_D.cumprod(0) // radices_D)).sum(1)


def nearest(latents_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index of the nearest code (Euclidean; the lower index where two are equally near)."""
    # |z - e|^2 without the term |z|^2, which is the same for every code
    scores_NK = torch.addmm(codebook_KD.square().sum(1), latents_ND, codebook_KD.T, alpha=-2)
    return scores_NK.argmin(1)


def through(placed_ND: Tensor, codes_ND: Tensor) -> Tensor:
    """The codes, with the gradient passed straight through to the latents (Bengio et al. 2013)."""
    return placed_ND + (codes_ND - placed_ND).detach()


def bit_entropies(
    latents_ND: Tensor, temperature: float, mean_over: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """LFQ's two entropies in nats: (mean entropy of a latent's code, entropy of the mean code); scalars.

    A latent's probability of code c in {-1, 1}^D is softmax(-|z - c|^2 / temperature), a product over channels; so the
    first entropy is a sum over channels, and the mean over latents of all K probabilities is one matrix product of the
    probabilities of the first and the last channels. Exact, at O(N (2^(D/2)) + K) memory.

    Args:
        mean_over: averages the mean probabilities (K,) over processes.
    """
    odds_ND = 4 * latents_ND.float() / temperature  # the logarithm of the odds of +1
    ones_ND, zeros_ND = torch.sigmoid(odds_ND), torch.sigmoid(-odds_ND)
    # p log p has an infinite slope at 0, where the gradient would be infinity times 0: softplus knows the logarithms,
    # and what has no probability in float32 adds nothing
    sure = (ones_ND * F.softplus(-odds_ND) + zeros_ND * F.softplus(odds_ND)).sum(1).mean()
    probabilities_ND2 = torch.stack([zeros_ND, ones_ND], -1)
    half = latents_ND.shape[1] // 2
    low_NA, high_NB = _products(probabilities_ND2[:, :half]), _products(probabilities_ND2[:, half:])
    mean_K = (low_NA.T @ high_NB).flatten() / len(latents_ND)
    if mean_over is not None:
        mean_K = mean_K + (mean_over(mean_K.detach()) - mean_K).detach()
    return sure, torch.special.entr(mean_K.clamp_min(1e-30)).sum()


def _products(probabilities_ND2: Tensor) -> Tensor:
    """The probabilities of all 2^D values of D independent bits: (N, 2^D)."""
    found_NA = probabilities_ND2.new_ones(len(probabilities_ND2), 1)
    for pair_N2 in probabilities_ND2.unbind(1):
        found_NA = (pair_N2[:, :, None] * found_NA[:, None, :]).flatten(1)
    return found_NA
