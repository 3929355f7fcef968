"""The VQGAN of Esser et al. 2021 (https://arxiv.org/abs/2012.09841), as taming-transformers, LlamaGen and aMUSEd
publish it: one network for the three, with taming's names of the weights.

The order of the arithmetic is part of the published models: tokens are an argmin over distances that come close to
each other, so each family states how it computes them and its activation, and nothing is reassociated here.

B batch, C channels, H W image, h w token grid, N = B*h*w, K codebook, D code width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import ConfigError, DataError, WeightsError

Activation = Callable[[Tensor], Tensor]
#: How squared distances to the codes are added up; all equal in exact arithmetic.
Distance = Literal["expanded", "addmm", "cdist"]

#: Rows of the distance matrix computed at once; bounds memory at 16,384 codes to about 0.5 GB.
ROWS_AT_ONCE = 8192


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x) as two roundings; `silu` rounds once and differs in the last bit."""
    gate = torch.sigmoid(x)
    return x * gate if gate.requires_grad else gate.mul_(x)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) in one rounding; writes over x where no gradient is wanted, so give it what nobody else needs."""
    return F.silu(x, inplace=not x.requires_grad)


def added(y: Tensor, x: Tensor) -> Tensor:
    """x + y; writes over y where no gradient is wanted (large images are bound by memory)."""
    return y + x if y.requires_grad or x.requires_grad else y.add_(x)


@dataclass(frozen=True)
class Shape:
    """The differences between the published networks.

    Attributes:
        multipliers: channels of each level, finest first, as multiples of `channels`.
        attention: attention in the last level and the middle.
        z_channels: width between encoder and `quant_conv`.
        code_dim: width of a code, D.
        normalised: codes and latents are scaled to unit length before they are compared and looked up.
        distance, activation: see above.
    """

    multipliers: tuple[int, ...]
    attention: bool
    z_channels: int
    code_dim: int
    normalised: bool = False
    distance: Distance = "expanded"
    activation: Activation = swish
    channels: int = 128
    num_blocks: int = 2


class VQGAN(nn.Module):
    """Encoder, nearest code, decoder, for images of any size that `downsample_factor` divides.

    Args:
        shape: which of the published networks.
        codebook_size: number of codes, K.
        family: the name that errors begin with.
        half_is_safe: False where fp16 is known to overflow.
    """

    in_channels = 3

    def __init__(self, shape: Shape, codebook_size: int, family: str, half_is_safe: bool = True) -> None:
        super().__init__()
        self.shape, self.codebook_size, self.family, self.half_is_safe = shape, codebook_size, family, half_is_safe
        self.downsample_factor = 2 ** (len(shape.multipliers) - 1)
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quantize = Codebook(codebook_size, shape.code_dim)
        self.quant_conv = nn.Conv2d(shape.z_channels, shape.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(shape.code_dim, shape.z_channels, 1)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to tokens (B, h, w), int64 in [0, K).

        Raises:
            DataError: H or W is not a multiple of `downsample_factor`.
            ConfigError: fp16 where it is not safe.
        """
        latents_BDhw = self.latents(images_BCHW)
        b, d, h, w = latents_BDhw.shape
        latents_ND = latents_BDhw.permute(0, 2, 3, 1).reshape(-1, d)
        return self.tokens_of(latents_ND).view(b, h, w)

    def tokens_of(self, latents_ND: Tensor) -> Tensor:
        """The token of each latent, int64 (N,): the nearest code."""
        if self.shape.normalised:
            latents_ND = F.normalize(latents_ND.float(), dim=-1)
        return nearest(latents_ND, self._codes(), self.shape.distance)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """The continuous output (B, D, h, w) that `encode` compares with the codes."""
        self._check(images_BCHW)
        latents_BDhw: Tensor = self.quant_conv(self.encoder(colour(images_BCHW, self.quant_conv.weight.dtype)))
        return latents_BDhw

    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) to images (B, 3, H, W), about [-1, 1], not clamped."""
        self._check_precision()
        codes_BDhw = self._codes()[tokens_Bhw].permute(0, 3, 1, 2).contiguous()
        images_BCHW: Tensor = self.decoder(self.post_quant_conv(codes_BDhw.to(self.quant_conv.weight.dtype)))
        return images_BCHW

    def _codes(self) -> Tensor:
        codes_KD = self.quantize.embedding.weight
        return F.normalize(codes_KD.float(), dim=-1) if self.shape.normalised else codes_KD

    def _check(self, images_BCHW: Tensor) -> None:
        check_size(images_BCHW, self.downsample_factor, self.family)
        self._check_precision()

    def _check_precision(self) -> None:
        if not self.half_is_safe and torch.float16 in (self.quant_conv.weight.dtype, autocast_dtype(self)):
            raise ConfigError(f"precision: fp16 makes NaNs in the published {self.family} network; use fp32 or bf16")


class Codebook(nn.Module):
    """The codes, under the name that all families publish them."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)


def nearest(latents_ND: Tensor, codes_KD: Tensor, distance: Distance) -> Tensor:
    """Index of the nearest code (Euclidean) of each latent, int64 (N,); always computed in float32.

    Of codes equally near in the rounding of `distance` the first wins, so `distance` is part of a published model.
    """
    with torch.autocast(latents_ND.device.type, enabled=False):
        codes_KD = codes_KD.float()
        norms_K = codes_KD.square().sum(1)
        indices = [_nearest(rows, codes_KD, norms_K, distance) for rows in latents_ND.float().split(ROWS_AT_ONCE)]
    return torch.cat(indices)


def _nearest(latents_ND: Tensor, codes_KD: Tensor, norms_K: Tensor, distance: Distance) -> Tensor:
    if distance == "cdist":
        return torch.cdist(latents_ND, codes_KD).argmin(1)
    sums_NK = latents_ND.square().sum(1, keepdim=True) + norms_K
    if distance == "addmm":
        return torch.addmm(sums_NK, latents_ND, codes_KD.T, alpha=-2.0).argmin(1)
    return (sums_NK - 2 * torch.einsum("nd,kd->nk", latents_ND, codes_KD)).argmin(1)


def check_size(images_BCHW: Tensor, factor: int, family: str) -> None:
    """Refuses sizes that do not divide into tokens, and channels that are neither grey nor colour."""
    channels, height, width = images_BCHW.shape[1:]
    if height % factor or width % factor or not height or not width:
        raise DataError(
            f"image size: found {height}x{width}; tokenizer {family} takes multiples of {factor}; "
            "set dataset.image_size to one"
        )
    if channels not in (1, 3):
        raise DataError(f"image channels: found {channels}; tokenizer {family} takes 3 (or 1, repeated); convert them")


def colour(images_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Grey images repeated to three channels, in the network's precision."""
    return images_BCHW.to(dtype).expand(-1, 3, -1, -1)


def autocast_dtype(module: nn.Module) -> torch.dtype | None:
    """The precision that autocast would choose for this module now, or None."""
    kind = next(module.parameters()).device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class Encoder(nn.Module):
    """Images to `z_channels` at the token grid."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [shape.channels * m for m in shape.multipliers]
        self.activation = shape.activation
        self.conv_in = _conv3(3, shape.channels)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Level(before, after, shape.num_blocks, shape, attention=i == last, downsample=i < last)
            for i, (before, after) in enumerate(zip([shape.channels, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], shape)
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv3(widths[-1], shape.z_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(self.activation(self.norm_out(self.mid(x_BCHW))))
        return out


class Decoder(nn.Module):
    """`z_channels` at the token grid to images; `up` is stored finest first and run last to first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [shape.channels * m for m in shape.multipliers]
        self.activation = shape.activation
        self.conv_in = _conv3(shape.z_channels, widths[-1])
        self.mid = Middle(widths[-1], shape)
        last = len(widths) - 1
        self.up = nn.ModuleList(
            Level(before, after, shape.num_blocks + 1, shape, attention=i == last, upsample=i > 0)
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(x_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(self.activation(self.norm_out(x_BCHW)))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where there is any, then a change of resolution."""

    def __init__(
        self,
        before: int,
        after: int,
        num_blocks: int,
        shape: Shape,
        *,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            Block(before if i == 0 else after, after, shape.activation) for i in range(num_blocks)
        )
        self.attn = nn.ModuleList(Attention(after) for _ in range(num_blocks if attention and shape.attention else 0))
        if downsample:
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(after, after, 3, stride=2)})
        if upsample:
            self.upsample = nn.ModuleDict({"conv": _conv3(after, after)})
        self.resize = "down" if downsample else "up" if upsample else ""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        if self.resize == "down":  # padded right and below only
            x_BCHW = self.downsample["conv"](F.pad(x_BCHW, (0, 1, 0, 1)))
        elif self.resize == "up":
            x_BCHW = self.upsample["conv"](F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return x_BCHW


class Middle(nn.Module):
    """Block, attention (or nothing), block at the coarsest resolution."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.block_1 = Block(width, width, shape.activation)
        self.attn_1 = Attention(width) if shape.attention else nn.Identity()
        self.block_2 = Block(width, width, shape.activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class Block(nn.Module):
    """Residual block; a 1x1 convolution carries the input along where the width changes."""

    def __init__(self, before: int, after: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.norm1, self.conv1 = _norm(before), _conv3(before, after)
        self.norm2, self.conv2 = _norm(after), _conv3(after, after)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(self.activation(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(self.activation(self.norm2(y_BCHW)))
        return added(y_BCHW, x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class Attention(nn.Module):
    """Single-head attention over all places, with 1x1 convolutions, scaled by width^-0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.norm(x_BCHW)
        q_BCN, k_BCN, v_BCN = (conv(y_BCHW).flatten(2) for conv in (self.q, self.k, self.v))
        weights_BNM = (torch.bmm(q_BCN.transpose(1, 2), k_BCN) * q_BCN.shape[1] ** -0.5).softmax(2)
        seen_BCHW = torch.bmm(v_BCN, weights_BNM.transpose(1, 2)).view_as(x_BCHW)
        return added(self.proj_out(seen_BCHW), x_BCHW)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _conv3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def codebook_size_of(tensors: Mapping[str, Tensor], key: str, code_dim: int, source: str) -> int:
    """The number of codes in a published file.

    Raises:
        WeightsError: there is no codebook under `key`, or it has another width.
    """
    codebook = tensors.get(key)
    if codebook is None:
        raise WeightsError(f"{source}: lacks {key} [*, {code_dim}]; these weights belong to another model")
    if codebook.ndim != 2 or codebook.shape[1] != code_dim:
        raise WeightsError(
            f"{source}: {key} has shape {list(codebook.shape)} but the model wants [*, {code_dim}]; "
            "these weights belong to another model"
        )
    return int(codebook.shape[0])
