"""MaskGIT's own VQGANs (Chang et al. 2022, https://arxiv.org/abs/2202.04200), as they were ported to PyTorch.

There are two, of one shape: for 256 pixels (TiTok's port) and for 512 (hmorimitsu/maskgit-torch's port, other names).
The transformers for 256 and for 512 pixels know the codes of their own one only.

No attention and no strided convolution, and one quirk that is part of the published weights: where a block changes
the width, the 1x1 convolution of its shortcut is applied to the block's output, not to its input.

B batch, C channels, H W image, h w token grid, K codes, D = 256 code width.
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import Codebook, added, check_size, codebook_size_of, colour, nearest, silu
from maskgit_core.weights.published import Unfilled, fill, read

MULTIPLIERS, CHANNELS, NUM_BLOCKS, CODE_DIM = (1, 1, 2, 2, 4), 128, 2, 256


class Tokenizer(nn.Module):
    """16 pixels a token, 1,024 codes.

    Args:
        weights: `titok/maskgit-vqgan-imagenet-f16-256`, `maskgit/tokenizer_imagenet512`, or a file of either layout.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    in_channels = 3
    downsample_factor = 2 ** (len(MULTIPLIERS) - 1)

    def __init__(self, *, weights: Weights[str] = "titok/maskgit-vqgan-imagenet-f16-256") -> None:
        tensors = read(weights)
        super().__init__()
        published_name = ported_name if "quantizer.codebook.weight" in tensors else str
        codebook = published_name("quantize.embedding.weight")
        self.codebook_size = codebook_size_of(tensors, codebook, CODE_DIM, weights)
        with Unfilled():
            self.encoder, self.decoder = Encoder(), Decoder()
            self.quantize = Codebook(self.codebook_size, CODE_DIM)
        fill(self, tensors, weights, published_name=published_name)
        self.eval()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, K).

        Raises:
            DataError: H or W is not a multiple of 16.
        """
        latents_BDhw = self.latents(images_BCHW)
        b, d, h, w = latents_BDhw.shape
        latents_ND = latents_BDhw.permute(0, 2, 3, 1).reshape(-1, d)
        return nearest(latents_ND, self.quantize.embedding.weight, "addmm").view(b, h, w)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """The continuous output (B, D, h, w) that `encode` compares with the codes."""
        check_size(images_BCHW, self.downsample_factor, "maskgit_vqgan")
        images_BCHW = colour(images_BCHW, self.encoder.conv_in.weight.dtype)
        latents_BDhw: Tensor = self.encoder((images_BCHW + 1) / 2)  # the network sees [0, 1]
        return latents_BDhw

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) to images (B, 3, H, W) in [-1, 1]; the published model clamps its output."""
        codes_BDhw = self.quantize.embedding(tokens_Bhw).permute(0, 3, 1, 2)
        images_BCHW: Tensor = self.decoder(codes_BDhw).clamp(0, 1)
        return images_BCHW * 2 - 1


def ported_name(name: str) -> str:
    """hmorimitsu/maskgit-torch's name of one of our tensors; there the blocks are counted in the order they are run."""
    if name == "quantize.embedding.weight":
        return "quantizer.codebook.weight"
    parts = {"norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "nin_shortcut": "conv_res"}
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(\d)\.(\w+)\.(\w+)", name):
        side, block, part, kind = match.groups()
        return f"{side}.res_blocks.{len(MULTIPLIERS) if side == 'encoder' else 0}.{block}.{parts[part]}.{kind}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d)\.(?:block\.(\d)\.)?(\w+)\.(\w+)", name):
        side, level, block, part, kind = match.groups()
        place = int(level) if side == "encoder.down" else len(MULTIPLIERS) - int(level)
        inner = f"{NUM_BLOCKS + 1}" if part == "upsample_conv" else f"{block}.{parts[part]}"
        return f"{side.partition('.')[0]}.res_blocks.{place}.{inner}.{kind}"
    return name


class Encoder(nn.Module):
    """Images in [0, 1] to latents; halves the resolution by averaging 2x2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        widths = [CHANNELS * m for m in MULTIPLIERS]
        self.conv_in = Conv3(3, CHANNELS, bias=False)
        self.down = nn.ModuleList(
            Level(before, after) for before, after in zip([CHANNELS, *widths], widths, strict=False)
        )
        self.mid = _blocks(widths[-1], widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], CODE_DIM, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for i, level in enumerate(self.down):
            x_BCHW = level(x_BCHW)
            if i < len(self.down) - 1:
                x_BCHW = F.avg_pool2d(x_BCHW, 2)
        out: Tensor = self.conv_out(silu(self.norm_out(self.mid(x_BCHW))))
        return out


class Decoder(nn.Module):
    """Codes to images in about [0, 1]; `up` is stored finest first and run last to first."""

    def __init__(self) -> None:
        super().__init__()
        widths = [CHANNELS * m for m in MULTIPLIERS]
        self.conv_in = Conv3(CODE_DIM, widths[-1])
        self.mid = _blocks(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Level(before, after, upsample=i > 0)
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = Conv3(widths[0], 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(x_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(silu(self.norm_out(x_BCHW)))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, and in the decoder a doubling of it."""

    def __init__(self, before: int, after: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = _blocks(before, after)
        self.upsample_conv = Conv3(after, after) if upsample else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.block(x_BCHW)
        if self.upsample_conv is not None:
            x_BCHW = self.upsample_conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return x_BCHW


class Block(nn.Module):
    """Residual block with the published shortcut: on the output of the convolutions."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), Conv3(before, after, bias=False)
        self.norm2, self.conv2 = _norm(after), Conv3(after, after, bias=False)
        self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False) if before != after else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(silu(self.norm2(y_BCHW)))
        return added(y_BCHW, x_BCHW) if self.nin_shortcut is None else y_BCHW + self.nin_shortcut(y_BCHW)


def _blocks(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*(Block(before if i == 0 else after, after) for i in range(NUM_BLOCKS)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class Conv3(nn.Conv2d):
    """3x3 convolution of an image padded with zeros beforehand.

    The published implementation pads as a step of its own (TensorFlow's SAME). Padding inside the convolution is the
    same in exact arithmetic, but takes other kernels whose last bits differ, and some tokens with them.
    """

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 3, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCHW, (1, 1, 1, 1)))
