"""TiTok's one-dimensional tokenizers (Yu et al. 2024, https://arxiv.org/abs/2406.07550).

A transformer reads the patches of a 256 x 256 image together with L latent tokens; only the latents are quantised. A
second transformer fills the patches in again from them. In the first models (L-32, B-64, S-128) it predicts codes of
MaskGIT's VQGAN, whose decoder draws the image; in the later ones (BL-64, BL-128, SL-256) it predicts pixels. The tokens
have no place in the picture: their grid is 1 x L.

B batch, C channels, H W image, L latent tokens, K codes, D code width, W width of a transformer, P patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.hints import Weights
from maskgit_core.layers.dropout import attention
from maskgit_core.layers.steady import GELU
from maskgit_core.layers.vqgan import Codebook, codebook_size_of, colour, nearest
from maskgit_core.tokenizers.maskgit_vqgan import CODE_DIM, Decoder
from maskgit_core.weights.published import Unfilled, fill, read

HEAD_DIM, PROXY_CODES = 64, 1024
#: The tokens have no place in the picture, so a region of it cannot be kept or drawn anew by them.
ONE_DIMENSIONAL = True


class Tokenizer(nn.Module):
    """L tokens an image of 256 x 256 pixels.

    Args:
        weights: `titok/tokenizer_l32`, `_b64`, `_s128` (4,096 codes), `_bl64_vq8k`, `_bl128_vq8k`, `_sl256_vq8k` (8,192
            codes), or a file of one of those layouts, which says all sizes.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    in_channels = 3

    def __init__(self, *, weights: Weights[str] = "titok/tokenizer_l32") -> None:
        tensors = read(weights)
        super().__init__()
        self.num_latents = _shape(tensors, "latent_tokens", 2, weights)[0]
        code_dim, width = _shape(tensors, "encoder.conv_out.weight", 4, weights)[:2]
        decoder_width = _shape(tensors, "decoder.ln_pre.weight", 1, weights)[0]
        patch = _shape(tensors, "encoder.patch_embed.weight", 4, weights)[2]
        side = math.isqrt(_shape(tensors, "encoder.positional_embedding", 2, weights)[0] - 1)
        self.codebook_size = codebook_size_of(tensors, "quantize.embedding.weight", code_dim, weights)
        self.image_size, self.grid = patch * side, (1, self.num_latents)
        # the first models: codes of unit length, an image by way of MaskGIT's VQGAN, and scrambled latents
        self.first = "pixel_quantize.embedding.weight" in tensors
        with Unfilled():
            self.latent_tokens = nn.Parameter(torch.empty(self.num_latents, width))
            self.encoder = Encoder(width, _depth(tensors, "encoder"), side, patch, self.num_latents, code_dim)
            decoder = (decoder_width, _depth(tensors, "decoder"), side, patch, self.num_latents, code_dim, self.first)
            self.decoder = PatchDecoder(*decoder)
            self.quantize = Codebook(self.codebook_size, code_dim)
            if self.first:
                self.pixel_quantize = Codebook(PROXY_CODES, CODE_DIM)
                self.pixel_decoder = Decoder()
        fill(self, tensors, weights)
        self.eval()

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, 256, 256) in [-1, 1] to tokens (B, 1, L), int64 in [0, K).

        Raises:
            DataError: images of another size.
        """
        latents_BLD = self.latents(images_BCHW)[:, :, 0].transpose(1, 2)
        latents_ND = latents_BLD.reshape(-1, latents_BLD.shape[2]).float()
        if self.first:
            latents_ND = F.normalize(latents_ND, dim=-1)
        return nearest(latents_ND, self._codes(), "expanded").view(-1, 1, self.num_latents)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """The continuous output (B, D, 1, L) that `encode` compares with the codes."""
        channels, height, width = images_BCHW.shape[1:]
        if (height, width) != (self.image_size, self.image_size):
            raise DataError(
                f"image size: found {height}x{width}; tokenizer titok takes {self.image_size}x{self.image_size}; "
                f"set dataset.image_size={self.image_size}"
            )
        if channels not in (1, 3):
            raise DataError(f"image channels: found {channels}; tokenizer titok takes 3 (or 1, repeated); convert them")
        images_BCHW = colour(images_BCHW, self.latent_tokens.dtype)
        x_BLW = self.encoder((images_BCHW + 1) / 2, self.latent_tokens)  # the network sees [0, 1]
        if self.first:  # as published: read as (W, L) without transposing
            x_BWL1 = x_BLW.reshape(len(x_BLW), x_BLW.shape[2], self.num_latents, 1)
        else:
            x_BWL1 = x_BLW.transpose(1, 2)[..., None]
        latents_BDL1: Tensor = self.encoder.conv_out(x_BWL1)
        return latents_BDL1.flatten(2)[:, :, None]

    def decode(self, tokens_B1L: Tensor) -> Tensor:
        """Tokens (B, 1, L) to images (B, 3, 256, 256), about [-1, 1], not clamped."""
        codes_BLD = self._codes()[tokens_B1L[:, 0]].to(self.latent_tokens.dtype)
        drawn_BCHW: Tensor = self.decoder(codes_BLD)
        if self.first:
            shares_BKhw = drawn_BCHW.softmax(1)
            codes_BDhw = torch.einsum("nchw,cd->ndhw", shares_BKhw, self.pixel_quantize.embedding.weight)
            drawn_BCHW = self.pixel_decoder(codes_BDhw)
        return drawn_BCHW * 2 - 1

    def _codes(self) -> Tensor:
        codes_KD = self.quantize.embedding.weight.float()
        return F.normalize(codes_KD, dim=-1) if self.first else codes_KD


def small_layout(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Published names and shapes, of two layers and images of 2 x 2 patches: for trials with random weights."""
    layout = {}
    for name, shape in shapes.items():
        if not re.match(r"(en|de)coder\.transformer\.([2-9]|\d\d)", name):
            layout[name] = (2 * 2 + 1, *shape[1:]) if name.endswith("coder.positional_embedding") else shape
    return layout


def _shape(tensors: Mapping[str, Tensor], name: str, dims: int, source: str) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != dims:
        fault = "lacks it" if tensor is None else f"has shape {list(tensor.shape)}"
        raise WeightsError(
            f"{source}: {name} should have {dims} dimensions but the file {fault}; "
            "these weights belong to another model"
        )
    return tuple(tensor.shape)


def _depth(tensors: Mapping[str, Tensor], part: str) -> int:
    numbers = [int(name.split(".")[2]) for name in tensors if name.startswith(f"{part}.transformer.")]
    return max(numbers, default=-1) + 1


class Encoder(nn.Module):
    """Image patches and latent tokens through one transformer; the latents come out."""

    def __init__(self, width: int, depth: int, side: int, patch: int, num_latents: int, code_dim: int) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(num_latents, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.conv_out = nn.Conv2d(width, code_dim, 1)

    def forward(self, images_BCHW: Tensor, latents_LW: Tensor) -> Tensor:
        patches_BPW = self.patch_embed(images_BCHW).flatten(2).transpose(1, 2)
        count = len(patches_BPW)
        x_BPW = torch.cat([self.class_embedding.expand(count, -1, -1), patches_BPW], dim=1) + self.positional_embedding
        latents_LW = latents_LW + self.latent_token_positional_embedding
        x_BPW = torch.cat([x_BPW, latents_LW.expand(count, -1, -1)], dim=1)
        x_BPW = self.transformer(self.ln_pre(x_BPW))
        out_BLW: Tensor = self.ln_post(x_BPW[:, -self.num_latents :])
        return out_BLW


class PatchDecoder(nn.Module):
    """Codes and mask tokens through one transformer; what replaces the masks becomes pixels, or VQGAN codes."""

    def __init__(
        self, width: int, depth: int, side: int, patch: int, num_latents: int, code_dim: int, to_codes: bool
    ) -> None:
        super().__init__()
        self.side, self.patch, self.to_codes = side, patch, to_codes
        self.decoder_embed = nn.Linear(code_dim, width)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(num_latents, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Sequential(*(Block(width) for _ in range(depth)))
        if to_codes:
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PROXY_CODES, 1))
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, codes_BLD: Tensor) -> Tensor:
        x_BLW = self.decoder_embed(codes_BLD) + self.latent_token_positional_embedding
        count = len(x_BLW)
        masks_BPW = torch.cat(
            [self.class_embedding.expand(count, -1, -1), self.mask_token.expand(count, self.side**2, -1)], dim=1
        )
        x_BPW = torch.cat([masks_BPW + self.positional_embedding, x_BLW], dim=1)
        x_BPW = self.transformer(self.ln_pre(x_BPW))
        x_BPW = self.ln_post(x_BPW[:, 1 : 1 + self.side**2])
        x_BWhw = x_BPW.transpose(1, 2).unflatten(2, (self.side, self.side)).contiguous()
        out: Tensor = self.ffn(x_BWhw)
        if self.to_codes:
            return out
        pixels = out.unflatten(1, (self.patch, self.patch, 3)).permute(0, 3, 4, 1, 5, 2)  # b c h p1 w p2
        size = self.side * self.patch
        out = self.conv_out(pixels.reshape(count, 3, size, size))
        return out


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); the names of CLIP's vision transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", GELU("none"))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x_BPW: Tensor) -> Tensor:
        x_BPW = x_BPW + self.attn(self.ln_1(x_BPW))
        out: Tensor = x_BPW + self.mlp(self.ln_2(x_BPW))
        return out


class Attention(nn.Module):
    """Self-attention in heads of 64; the names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BPW: Tensor) -> Tensor:
        qkv = F.linear(x_BPW, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out_proj(attention(q, k, v, 0.0, False).transpose(1, 2).flatten(2))
        return out
