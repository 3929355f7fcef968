"""Open-MAGVIT2's image tokenizers (Luo et al. 2024, https://arxiv.org/abs/2409.04410): lookup-free, 14 or 18 bits.

A token is the signs of its latent, the first channel the lowest bit (LFQ; Yu et al. 2023, arXiv:2310.05737). No layer
attends. The decoder doubles the resolution by convolutions to four times the width, and scales and shifts each level
by the deviation and the mean of the picture's bits.

Published as Lightning checkpoints with a moving average of all weights, which is what its authors score: where a file
has one, it is used. The loss's networks, where a file has them, are dropped.

B batch, C channels, H W image, h w token grid, D number of bits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import added, check_size, colour, swish
from maskgit_core.token_groups import bits_of, ids_of
from maskgit_core.weights.averages import AVERAGES, published_averages
from maskgit_core.weights.published import Unfilled, fill, read

CHANNELS, NUM_BLOCKS = 128, 4
#: Widths of the levels, finest first, by their number: 16 or 8 pixels a token.
MULTIPLIERS = {5: (1, 1, 2, 2, 4), 4: (1, 2, 2, 4)}
LATENT = "encoder.conv_out.weight"


class Tokenizer(nn.Module):
    """16 or 8 pixels a token and 2^14 or 2^18 tokens, by the file.

    Args:
        weights: `open_magvit2/imagenet_256`, `open_magvit2/imagenet_128`, `open_magvit2/pretrain_16384`,
            `open_magvit2/pretrain_262144`, or a file of one of those layouts.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    in_channels = 3

    def __init__(self, *, weights: Weights[str] = "open_magvit2/imagenet_256") -> None:
        tensors = read(weights, containers=("state_dict",), drop=("loss.", *AVERAGES))
        super().__init__()
        levels = 5 if "encoder.down.4.block.0.conv1.weight" in tensors else 4
        self.num_bits = _num_bits(tensors, weights)
        self.codebook_size = 2**self.num_bits
        self.downsample_factor = 2 ** (levels - 1)
        widths = [CHANNELS * m for m in MULTIPLIERS[levels]]
        with Unfilled():
            self.encoder, self.decoder = Encoder(widths, self.num_bits), Decoder(widths, self.num_bits)
        fill(self, tensors, weights, **published_averages(self, tensors))
        self.eval()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, 2^D).

        Raises:
            DataError: H or W is not a multiple of `downsample_factor`.
        """
        return ids_of(self.latents(images_BCHW).permute(0, 2, 3, 1) > 0)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """The continuous output (B, D, h, w) whose signs are the tokens."""
        check_size(images_BCHW, self.downsample_factor, "open_magvit2")
        latents_BDhw: Tensor = self.encoder(colour(images_BCHW, self.encoder.conv_in.weight.dtype))
        return latents_BDhw

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) to images (B, 3, H, W), about [-1, 1], not clamped.

        Raises:
            DataError: there is one token only; the decoder asks for a deviation over the tokens of a picture.
        """
        if tokens_Bhw[0].numel() < 2:
            size = self.downsample_factor
            raise DataError(
                f"image size: found {size}x{size}, one token; tokenizer open_magvit2 takes two tokens and more; "
                f"set dataset.image_size to {2 * size} or more"
            )
        # channels stay last in memory, as in the published decoder: convolutions then sum in its order
        bits_BDhw = bits_of(tokens_Bhw, self.num_bits).permute(0, 3, 1, 2)
        images_BCHW: Tensor = self.decoder(bits_BDhw.to(self.decoder.conv_out.weight.dtype))
        return images_BCHW


def _num_bits(tensors: dict[str, Tensor], source: str) -> int:
    last = tensors.get(LATENT)
    if last is None:
        raise WeightsError(f"{source}: lacks {LATENT} [*, 512, 1, 1]; these weights belong to another model")
    if last.ndim != 4 or not 1 <= len(last) <= 24:
        raise WeightsError(
            f"{source}: {LATENT} has shape {list(last.shape)} but the model wants [*, 512, 1, 1] with at most 24 bits; "
            "these weights belong to another model"
        )
    return len(last)


class Encoder(nn.Module):
    """Images in [-1, 1] to latents of D channels; `widths` are those of the levels, finest first."""

    def __init__(self, widths: list[int], num_bits: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = _conv3(3, widths[0], bias=False)
        self.down = nn.ModuleList(
            Level(before, after, downsample=i < last)
            for i, (before, after) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.mid_block = _blocks(widths[-1], widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], num_bits, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(swish(self.norm_out(self.mid_block(x_BCHW))))
        return out


class Decoder(nn.Module):
    """Bits as -1 and 1 to images; `up` and `adaptive` are stored finest first and run last to first."""

    def __init__(self, widths: list[int], num_bits: int) -> None:
        super().__init__()
        before = [*widths[1:], widths[-1]]
        self.conv_in = _conv3(num_bits, widths[-1])
        self.mid_block = _blocks(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Level(width, after, upsample=i > 0) for i, (width, after) in enumerate(zip(before, widths, strict=True))
        )
        self.adaptive = nn.ModuleList(AdaptiveNorm(num_bits, width) for width in before)
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], 3)

    def forward(self, bits_BDhw: Tensor) -> Tensor:
        x_BCHW = self.mid_block(self.conv_in(bits_BDhw))
        for level, norm in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x_BCHW = level(norm(x_BCHW, bits_BDhw))
        out: Tensor = self.conv_out(swish(self.norm_out(x_BCHW)))
        return out


class AdaptiveNorm(nn.Module):
    """Group norm, scaled by a projection of the bits' deviations over the picture, shifted by one of their means."""

    def __init__(self, num_bits: int, width: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, width, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(num_bits, width), nn.Linear(num_bits, width)

    def forward(self, x_BCHW: Tensor, bits_BDhw: Tensor) -> Tensor:
        bits_BDN = bits_BDhw.flatten(2)
        deviations_BD = (bits_BDN.var(dim=-1) + 1e-6).sqrt()
        scale_BC, shift_BC = self.gamma(deviations_BD), self.beta(bits_BDN.mean(dim=-1))
        out: Tensor = scale_BC[..., None, None] * self.gn(x_BCHW) + shift_BC[..., None, None]
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, then half of it (padded on all sides) or twice of it."""

    def __init__(self, before: int, after: int, *, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = _blocks(before, after)
        self.downsample = nn.Conv2d(after, after, 3, stride=2, padding=1) if downsample else None
        self.upsample = nn.ModuleDict({"conv1": _conv3(after, 4 * after)}) if upsample else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.block(x_BCHW)
        if self.downsample is not None:
            x_BCHW = self.downsample(x_BCHW)
        if self.upsample is not None:
            wide_BCHW = self.upsample["conv1"](x_BCHW)
            # its channels count the four places of a pixel first; `pixel_shuffle` wants them last
            x_BCHW = F.pixel_shuffle(wide_BCHW.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)
        return x_BCHW


class Block(nn.Module):
    """Residual block without biases; a 1x1 convolution carries the input along where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv3(before, after, bias=False)
        self.norm2, self.conv2 = _norm(after), _conv3(after, after, bias=False)
        self.nin_shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x_BCHW))))))
        return added(y_BCHW, x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


def _blocks(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*(Block(before if i == 0 else after, after) for i in range(NUM_BLOCKS)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _conv3(before: int, after: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)
