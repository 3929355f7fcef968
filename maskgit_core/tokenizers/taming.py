"""The VQGANs of taming-transformers (Esser et al. 2021, https://arxiv.org/abs/2012.09841), ImageNet, f = 16.

Published as Lightning checkpoints; the loss's networks in them are dropped. Input and output are in about [-1, 1].
"""

from __future__ import annotations

from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import VQGAN, Shape, codebook_size_of
from maskgit_core.weights.published import Unfilled, fill, read

SHAPE = Shape(multipliers=(1, 1, 2, 2, 4), attention=True, z_channels=256, code_dim=256)


class Tokenizer(VQGAN):
    """16 pixels per token; 1,024 or 16,384 codes, by the file.

    Args:
        weights: `taming/vqgan_imagenet_f16_1024`, `taming/vqgan_imagenet_f16_16384`, or a file of that layout.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    def __init__(self, *, weights: Weights[str] = "taming/vqgan_imagenet_f16_16384") -> None:
        tensors = read(weights, containers=("state_dict",), drop=("loss.",))
        codebook_size = codebook_size_of(tensors, "quantize.embedding.weight", SHAPE.code_dim, weights)
        with Unfilled():
            super().__init__(SHAPE, codebook_size, "taming")
        fill(self, tensors, weights)
        self.eval()
