"""MaskBit's tokenizers (Weber et al. 2024, https://arxiv.org/abs/2409.16211): VQGAN+ and its lookup-free form.

The network is MaskGIT's VQGAN with strided convolutions on the way down. VQGAN+ compares latents with codes; the
lookup-free quantizer (LFQ; Yu et al. 2023, https://arxiv.org/abs/2310.05737) has none: a token is the signs of its
latent, bit i counting 2^i, so 10 to 18 bits make 1,024 to 262,144 tokens.

B batch, C channels, H W image, h w token grid, K codes, D code width (the number of bits for LFQ).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import WeightsError
from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import Codebook, check_size, codebook_size_of, colour, nearest, silu
from maskgit_core.token_groups import bits_of, ids_of
from maskgit_core.tokenizers.maskgit_vqgan import Block, Conv3
from maskgit_core.weights.published import Unfilled, fill, read

MULTIPLIERS, CHANNELS, NUM_BLOCKS = (1, 1, 2, 2, 4), 128, 2
#: Part of the published files though they follow from the number of bits: 2^i, and the bits of every token.
POWERS, SIGNS = "quantize.bits_to_indices", "quantize.codebook"
CODES = "quantize.embedding.weight"


class Tokenizer(nn.Module):
    """16 pixels a token; 2^bits tokens, or as many as the file has codes.

    Args:
        weights: `maskbit/tokenizer_10bit` ... `maskbit/tokenizer_18bit`, `maskbit/vqgan_plus_10bit`,
            `maskbit/vqgan_plus_12bit`, or a file of one of those layouts.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    in_channels = 3
    downsample_factor = 2 ** (len(MULTIPLIERS) - 1)

    def __init__(self, *, weights: Weights[str] = "maskbit/tokenizer_14bit") -> None:
        tensors = read(weights)
        super().__init__()
        width = _code_width(tensors, weights)
        self.lookup_free = CODES not in tensors
        self.codebook_size = 2**width if self.lookup_free else codebook_size_of(tensors, CODES, width, weights)
        with Unfilled():
            self.encoder, self.decoder = Encoder(width), Decoder(width)
            self.quantize = None if self.lookup_free else Codebook(self.codebook_size, width)
        if self.lookup_free:
            tensors = _without_bits(tensors, width, weights)
        fill(self, tensors, weights)
        self.code_dim = width
        self.eval()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, K).

        Raises:
            DataError: H or W is not a multiple of 16.
        """
        latents_BhwD = self.latents(images_BCHW).permute(0, 2, 3, 1)
        if self.quantize is None:
            return ids_of(latents_BhwD > 0)
        codes_KD = self.quantize.embedding.weight
        return nearest(latents_BhwD.flatten(0, 2), codes_KD, "expanded").view(latents_BhwD.shape[:3])

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """The continuous output (B, D, h, w) whose signs, or nearest codes, are the tokens."""
        check_size(images_BCHW, self.downsample_factor, "maskbit")
        images_BCHW = colour(images_BCHW, self.encoder.conv_in.weight.dtype)
        latents_BDhw: Tensor = self.encoder((images_BCHW + 1) / 2)  # the network sees [0, 1]
        return latents_BDhw

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) to images (B, 3, H, W), about [-1, 1], not clamped."""
        if self.quantize is None:
            codes_BhwD = bits_of(tokens_Bhw, self.code_dim)
        else:
            codes_BhwD = self.quantize.embedding(tokens_Bhw)
        codes_BDhw = codes_BhwD.permute(0, 3, 1, 2).contiguous().to(self.decoder.conv_out.weight.dtype)
        images_BCHW: Tensor = self.decoder(codes_BDhw)
        return images_BCHW * 2 - 1


def _code_width(tensors: dict[str, Tensor], source: str) -> int:
    last = tensors.get("encoder.conv_out.weight")
    if last is None:
        raise WeightsError(
            f"{source}: lacks encoder.conv_out.weight [*, 512, 1, 1]; these weights belong to another model"
        )
    if last.ndim != 4 or (CODES not in tensors and not 1 <= len(last) <= 24):
        raise WeightsError(
            f"{source}: encoder.conv_out.weight has shape {list(last.shape)} but the model wants [*, 512, 1, 1], "
            "with at most 24 bits where there is no codebook; these weights belong to another model"
        )
    return len(last)


def _without_bits(tensors: dict[str, Tensor], width: int, source: str) -> dict[str, Tensor]:
    for name, shape in ((POWERS, (width,)), (SIGNS, (2**width, width))):
        if name not in tensors:
            raise WeightsError(f"{source}: lacks {name} {list(shape)}; these weights belong to another model")
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(tensors[name].shape)} but the model wants {list(shape)}; "
                "these weights belong to another model"
            )
    return {name: tensor for name, tensor in tensors.items() if name not in (POWERS, SIGNS)}


class Encoder(nn.Module):
    """Images in [0, 1] to latents of `code_dim` channels."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        widths = [CHANNELS * m for m in MULTIPLIERS]
        last = len(widths) - 1
        self.conv_in = Conv3(3, CHANNELS, bias=False)
        self.down = nn.ModuleList(
            Level(before, after, "down" if i < last else "")
            for i, (before, after) in enumerate(zip([CHANNELS, *widths], widths, strict=False))
        )
        self.mid = Level(widths[-1], widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(silu(self.norm_out(self.mid(x_BCHW))))
        return out


class Decoder(nn.Module):
    """Codes to images in about [0, 1]; `up` is stored in the order in which it runs, coarsest first."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        widths = [CHANNELS * m for m in MULTIPLIERS]
        self.conv_in = Conv3(code_dim, widths[-1])
        self.mid = Level(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Level(before, after, "up" if i > 0 else "")
            for i, (before, after) in reversed(list(enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = Conv3(widths[0], 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(x_BCHW))
        for level in self.up:
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(silu(self.norm_out(x_BCHW)))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, then half of it (padded right and below only) or twice of it."""

    def __init__(self, before: int, after: int, resize: str = "") -> None:
        super().__init__()
        self.res_blocks = nn.Sequential(*(Block(before if i == 0 else after, after) for i in range(NUM_BLOCKS)))
        self.down_conv = nn.Conv2d(after, after, 3, stride=2) if resize == "down" else None
        self.upsample_conv = Conv3(after, after) if resize == "up" else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.res_blocks(x_BCHW)
        if self.down_conv is not None:
            x_BCHW = self.down_conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        if self.upsample_conv is not None:
            x_BCHW = self.upsample_conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return x_BCHW
