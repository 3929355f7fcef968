"""A VQGAN to train on pictures of one's own: the network of the published ones (taming-transformers, LlamaGen), at any
width, downsampling and quantizer.

Esser et al. 2021 (https://arxiv.org/abs/2012.09841). The defaults are taming's f16 with 1,024 codes. With the quantizer
`vq`, what `train_tokenizer` makes of it has taming's names of the weights and can be given to its loaders.

B batch, C image channels, H W image height and width, h w token grid, K codebook.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from maskgit_core.hints import Derived, Range
from maskgit_core.layers.quantizers import Kind, Quantizer, Reconstruction
from maskgit_core.layers.vqgan import VQGAN, Shape, colour, silu
from maskgit_core.refusals import check_levels

#: Channels of each level by downsampling, as multiples of `channels`: taming's and LlamaGen's.
MULTIPLIERS = {2: (1, 2), 4: (1, 2, 4), 8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}


class Tokenizer(VQGAN):
    """Encoder, quantizer and decoder for images of any size that `downsample_factor` divides; grey counts as RGB.

    Args:
        in_channels: channels of the dataset's images, 1 or 3; the network itself has 3.
        codebook_size: number of codes, K.
        code_dim: width of a code of `vq`; with `lfq` and `fsq` it follows from K.
        downsample_factor: pixels per token along one side.
        channels: width of the finest level, a multiple of 32; 128 as published.
        multipliers: width of each level, finest first, as multiples of `channels`; null: as published.
        num_blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention: attention at the coarsest level.
        z_channels: width between the encoder and the quantizer.
        quantizer, normalised, fsq_levels: see `vq`.

    Raises:
        ConfigError: options that do not go together; names one.
    """

    def __init__(
        self,
        *,
        in_channels: Derived[int] = 3,
        codebook_size: Annotated[int, Range(2, 262144)] = 1024,
        code_dim: Annotated[int, Range(1, 1024)] = 256,
        downsample_factor: Literal[2, 4, 8, 16, 32] = 16,
        channels: Annotated[int, Range(32, 1024)] = 128,
        multipliers: list[int] | None = None,
        num_blocks: Annotated[int, Range(1, 16)] = 2,
        attention: bool = True,
        z_channels: Annotated[int, Range(1, 1024)] = 256,
        quantizer: Kind = "vq",
        normalised: bool = False,
        fsq_levels: list[int] = [],  # noqa: B006
    ) -> None:
        levels = tuple(multipliers or MULTIPLIERS[downsample_factor])
        check_levels(channels, levels, downsample_factor)
        placed = Quantizer(quantizer, codebook_size, code_dim, normalised, fsq_levels)
        shape = Shape(levels, attention, z_channels, placed.code_dim, normalised,
                      activation=silu, channels=channels, num_blocks=num_blocks)  # fmt: skip
        super().__init__(shape, codebook_size, "vqgan")
        self.quantizer = placed
        self.codebook.data.copy_(placed.codebook())
        self.codebook.requires_grad_(False)

    @property
    def codebook(self) -> Tensor:
        """The codes, (K, D)."""
        return self.quantize.embedding.weight

    @property
    def last_layer(self) -> Tensor:
        """The weights nearest to the pixels, at which adversarial and reconstruction losses are weighed."""
        return self.decoder.conv_out.weight

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, K)."""
        latents_BDhw = self.latents(images_BCHW)
        b, d, h, w = latents_BDhw.shape
        placed_ND = self.quantizer.place(latents_BDhw.permute(0, 2, 3, 1).reshape(-1, d).float())
        return self.quantizer.tokens(placed_ND, self.codebook.float()).view(b, h, w)

    def forward(self, images_BCHW: Tensor, quantised: bool = True) -> Reconstruction:
        """One training pass; gradients reach the encoder straight through the quantisation."""
        latents_BDhw = self.latents(images_BCHW)
        return self.quantizer.reconstruction(latents_BDhw, self.codebook, self._decoded, quantised)

    def _decoded(self, codes_BDhw: Tensor) -> Tensor:
        images_BCHW: Tensor = self.decoder(self.post_quant_conv(codes_BDhw))
        return images_BCHW

    def seen(self, images_BCHW: Tensor) -> Tensor:
        """The images as the network takes and gives them: grey repeated to three channels."""
        return colour(images_BCHW, images_BCHW.dtype)
