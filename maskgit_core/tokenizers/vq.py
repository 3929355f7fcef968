"""A small vector-quantising tokenizer for datasets that have no published one.

Van den Oord et al. 2017 (VQ-VAE, https://arxiv.org/abs/1711.00937), shaped for little compute: no layer works at
full resolution, strided convolutions go down and sub-pixel convolutions (Shi et al. 2016,
https://arxiv.org/abs/1609.05158) come up. Trained by the stage `train_tokenizer`, as is
`vqgan`, the network of the published tokenizers.

B batch, C image channels, H W image height and width, h w token grid, N = B*h*w latents, K codebook, D code width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from einops import rearrange
from torch import Tensor, nn

from maskgit_core.errors import DataError
from maskgit_core.hints import Derived, Neutral, Range
from maskgit_core.layers.quantizers import Kind, Quantizer, Reconstruction, nearest
from maskgit_core.layers.steady import SiLU

__all__ = ["Block", "Reconstruction", "Tokenizer"]


class Tokenizer(nn.Module):
    """Convolutional encoder, nearest codebook vector, convolutional decoder; for images of any size that
    `downsample_factor` divides.

    Args:
        in_channels: channels of the images, 1 or 3; found from the dataset.
        codebook_size: number of codebook vectors, K.
        code_dim: width of a codebook vector, D; with `lfq` and `fsq` it follows from K.
        downsample_factor: pixels per token along one side.
        width: channels at the finest grid; doubled with each halving, at most `max_width`.
        num_blocks: residual blocks per grid, in the encoder and in the decoder.
        quantizer: `vq` (learnt codes), `lfq` (the sign of each of log2 K channels) or `fsq` (channels rounded to
            levels); see `maskgit_core/layers/quantizers.py`.
        normalised: of `vq`: latents and codes have unit length.
        fsq_levels: of `fsq`: values per channel; their product is K.

    Raises:
        ConfigError: `codebook_size` does not fit the quantizer.
    """

    def __init__(
        self,
        *,
        in_channels: Derived[int] = 3,
        codebook_size: Annotated[int, Range(2, 65536)] = 256,
        code_dim: Annotated[int, Range(1, 1024)] = 16,
        downsample_factor: Literal[2, 4, 8, 16] = 4,
        width: Annotated[int, Range(8, 1024)] = 32,
        max_width: Annotated[int, Range(8, 2048)] = 256,
        num_blocks: Annotated[int, Range(0, 16)] = 1,
        quantizer: Annotated[Kind, Neutral("vq")] = "vq",
        normalised: Annotated[bool, Neutral(False)] = False,
        fsq_levels: Annotated[list[int], Neutral([])] = [],  # noqa: B006
    ) -> None:
        super().__init__()
        self.quantizer = Quantizer(quantizer, codebook_size, code_dim, normalised, fsq_levels)
        code_dim = self.quantizer.code_dim
        self.in_channels, self.codebook_size, self.downsample_factor = in_channels, codebook_size, downsample_factor
        widths = [min(width * 2**i, max_width) for i in range(downsample_factor.bit_length() - 1)]
        down: list[nn.Module] = []
        for before, after in zip([in_channels, *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), *(Block(after) for _ in range(num_blocks))]
        self.encoder = nn.Sequential(*down, _norm(widths[-1]), SiLU(), nn.Conv2d(widths[-1], code_dim, 1))
        up: list[nn.Module] = [nn.Conv2d(code_dim, widths[-1], 3, padding=1)]
        for here, finer in zip(widths[::-1], [*widths[-2::-1], in_channels], strict=True):
            up += [*(Block(here) for _ in range(num_blocks)), _norm(here), SiLU()]
            up += [nn.Conv2d(here, 4 * finer, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*up)
        self.register_buffer("codebook", self.quantizer.codebook())
        self.codebook: Tensor

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, K).

        Raises:
            DataError: H or W is not a multiple of `downsample_factor`, or C is neither 1 nor `in_channels`.
        """
        latents_BDhw = self.encoder(self._fit(images_BCHW))
        placed_ND = self.quantizer.place(rearrange(latents_BDhw, "b d h w -> (b h w) d"))
        return self.quantizer.tokens(placed_ND, self.codebook).view(latents_BDhw.shape[0], *latents_BDhw.shape[2:])

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) to images (B, C, H, W), about [-1, 1], not clamped."""
        codes_BDhw = rearrange(self.quantizer.codes(self.codebook)[tokens_Bhw], "b h w d -> b d h w")
        images_BCHW: Tensor = self.decoder(codes_BDhw)
        return images_BCHW

    def forward(self, images_BCHW: Tensor, quantised: bool = True) -> Reconstruction:
        """One training pass; gradients reach the encoder straight through the quantisation.

        With `quantised=False` the decoder sees the latents themselves (a plain autoencoder; tokens are all 0).
        """
        latents_BDhw = self.encoder(self._fit(images_BCHW))
        return self.quantizer.reconstruction(latents_BDhw, self.codebook, self.decoder, quantised)

    @property
    def last_layer(self) -> Tensor:
        """The weights nearest to the pixels, at which adversarial and reconstruction losses are weighed."""
        return next(m.weight for m in reversed(self.decoder) if isinstance(m, nn.Conv2d))

    def seen(self, images_BCHW: Tensor) -> Tensor:
        """The images as the network takes and gives them: grey repeated to `in_channels`."""
        return self._fit(images_BCHW)

    def nearest(self, latents_ND: Tensor) -> Tensor:
        """Index of the nearest codebook vector (Euclidean; the lower index where two are equally near)."""
        return nearest(latents_ND, self.codebook)

    def _fit(self, images_BCHW: Tensor) -> Tensor:
        channels, height, width = images_BCHW.shape[1:]
        if height % self.downsample_factor or width % self.downsample_factor:
            raise DataError(
                f"image size: found {height}x{width}; tokenizer vq with downsample_factor {self.downsample_factor} "
                "takes multiples of it; choose another dataset.image_size or tokenizer.downsample_factor"
            )
        if channels == 1 < self.in_channels:
            return images_BCHW.expand(-1, self.in_channels, -1, -1)
        if channels != self.in_channels:
            raise DataError(
                f"image channels: found {channels}; this tokenizer takes {self.in_channels}; "
                "train a tokenizer on this dataset"
            )
        return images_BCHW


class Block(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(width),
            SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x_BDhw: Tensor) -> Tensor:
        out: Tensor = x_BDhw + self.body(x_BDhw)
        return out


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(max(g for g in (1, 2, 4, 8) if width % g == 0), width)
