"""aMUSEd's VQGAN (Patil et al. 2024, https://arxiv.org/abs/2401.01808), published in the layout of diffusers' VQModel.

taming's network with five widths, no attention and 8,192 codes. In fp16 it makes NaNs (its model card says so), so that
is refused. The weights are under openrail++ and are not part of this project.
"""

from __future__ import annotations

import re

from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import VQGAN, Shape, codebook_size_of, silu
from maskgit_core.weights.published import Unfilled, fill, read

SHAPE = Shape(
    multipliers=(1, 2, 2, 4, 6), attention=False, z_channels=64, code_dim=64, distance="cdist", activation=silu
)


class Tokenizer(VQGAN):
    """16 pixels a token, 8,192 codes; fp32 or bf16.

    Args:
        weights: `amused/amused-256`, `amused/amused-512`, or a file of that layout.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    def __init__(self, *, weights: Weights[str] = "amused/amused-512") -> None:
        tensors = read(weights)
        codebook_size = codebook_size_of(tensors, "quantize.embedding.weight", SHAPE.code_dim, weights)
        with Unfilled():
            super().__init__(SHAPE, codebook_size, "amused", half_is_safe=False)
        fill(self, tensors, weights, published_name=published_name)
        self.eval()


def published_name(name: str) -> str:
    """diffusers' name of one of our tensors; its decoder counts levels from the coarsest."""
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.block_(\d)\.(.+)", name):
        return f"{match[1]}.mid_block.resnets.{int(match[2]) - 1}.{match[3]}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d)\.(block|downsample|upsample)\.(.+)", name):
        part, level, kind, rest = match.groups()
        place = int(level) if part == "encoder.down" else len(SHAPE.multipliers) - 1 - int(level)
        inner = "resnets" if kind == "block" else f"{kind}rs.0"
        return f"{part}_blocks.{place}.{inner}.{rest}"
    return name
