"""IBQ's image tokenizers (Shi et al. 2024, https://arxiv.org/abs/2412.02692): 1,024 to 262,144 codes of 256 numbers.

taming's network with twice the residual blocks. Index backpropagation trains all codes through the softmax over them; a
token is the code with the largest inner product with its latent, not the nearest. Input and output are about [-1, 1].

Published as Lightning checkpoints with a moving average of all weights, which is what its authors score: where a file
has one, it is used. The loss's networks, where a file has them, are dropped.

B batch, h w token grid, N = B*h*w, K codes, D = 256 code width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgit_core.hints import Weights
from maskgit_core.layers.vqgan import VQGAN, Shape, codebook_size_of
from maskgit_core.weights.averages import AVERAGES, published_averages
from maskgit_core.weights.published import Unfilled, fill, read

SHAPE = Shape(multipliers=(1, 1, 2, 2, 4), attention=True, z_channels=256, code_dim=256, num_blocks=4)
#: Scores computed at once, rows times codes; 2^26 of them are 256 MB.
SCORES_AT_ONCE = 2**26


class Tokenizer(VQGAN):
    """16 pixels a token; as many codes as the file has.

    Args:
        weights: `ibq/imagenet_1024`, `ibq/imagenet_8192`, `ibq/imagenet_16384`, `ibq/imagenet_262144`,
            `ibq/pretrain_16384`, `ibq/pretrain_262144`, or a file of one of those layouts.

    Raises:
        WeightsError: the file is missing, damaged or of another layout; names the first key.
    """

    def __init__(self, *, weights: Weights[str] = "ibq/imagenet_16384") -> None:
        tensors = read(weights, containers=("state_dict",), drop=("loss.", *AVERAGES))
        codebook_size = codebook_size_of(tensors, "quantize.embedding.weight", SHAPE.code_dim, weights)
        with Unfilled():
            super().__init__(SHAPE, codebook_size, "ibq")
        fill(self, tensors, weights, **published_averages(self, tensors))
        self.eval()

    def tokens_of(self, latents_ND: Tensor) -> Tensor:
        """The token of each latent, int64 (N,): the code with the largest inner product."""
        return likeliest(latents_ND, self.quantize.embedding.weight)


def likeliest(latents_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index of the code with the largest inner product with each latent, int64 (N,); always computed in float32.

    The maximum is that of the softmax, as published: products that round to one probability tie, and the first wins.
    """
    with torch.autocast(latents_ND.device.type, enabled=False):
        codes_KD = codes_KD.float()
        parts = latents_ND.float().split(max(1, SCORES_AT_ONCE // len(codes_KD)))
        return torch.cat([(rows @ codes_KD.T).softmax(1).argmax(1) for rows in parts])
