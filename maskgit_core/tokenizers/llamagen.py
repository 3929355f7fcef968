"""LlamaGen's image tokenizers VQ-16 and VQ-8 (Sun et al. 2024, https://arxiv.org/abs/2406.06525).

taming's network with codes of 8 numbers and unit length; latents and codes are normalised before they are compared and
looked up. Input and output are in about [-1, 1].
"""

from __future__ import annotations

import re

from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import VQGAN, Shape, codebook_size_of
from maskgit_core.weights.published import Unfilled, fill, read

#: By the number of levels in the file.
SHAPES = {
    levels: Shape(multipliers=multipliers, attention=True, z_channels=256, code_dim=8, normalised=True)
    for levels, multipliers in ((5, (1, 1, 2, 2, 4)), (4, (1, 2, 2, 4)))
}
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


class Tokenizer(VQGAN):
    """16 or 8 pixels per token, by the file; 16,384 codes.

    Args:
        weights: `llamagen/vq_ds16_c2i`, `llamagen/vq_ds8_c2i`, or a file of that layout.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    def __init__(self, *, weights: Weights[str] = "llamagen/vq_ds16_c2i") -> None:
        # the order in which LlamaGen's own scripts look
        tensors = read(weights, containers=("ema", "model", "state_dict"))
        levels = 5 if "encoder.conv_blocks.4.res.0.conv1.weight" in tensors else 4
        codebook_size = codebook_size_of(tensors, "quantize.embedding.weight", SHAPES[levels].code_dim, weights)
        with Unfilled():
            super().__init__(SHAPES[levels], codebook_size, "llamagen")
        fill(
            self,
            tensors,
            weights,
            published_name=lambda name: published_name(name, levels),
            unused={"quantize.codebook_used": (65536,)},  # a record of its training
        )
        self.eval()


def published_name(name: str, levels: int) -> str:
    """LlamaGen's name of one of our tensors; its decoder counts levels from the coarsest."""
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(\w+)\.(.+)", name):
        return f"{match[1]}.mid.{_MIDDLE[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d)\.(\w+)\.(.+)", name):
        part, level, kind, rest = match.groups()
        place = int(level) if part == "encoder.down" else levels - 1 - int(level)
        return f"{part.partition('.')[0]}.conv_blocks.{place}.{'res' if kind == 'block' else kind}.{rest}"
    return name
