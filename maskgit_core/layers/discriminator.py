"""The patch discriminator of adversarial tokenizer training (Isola et al. 2017, https://arxiv.org/abs/1611.07004)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["group", "batch", "none"]


class Discriminator(nn.Module):
    """4x4 convolutions that judge overlapping patches; higher means more like a real picture.

    The first `num_layers` convolutions halve the grid; each patch is 16, 34 or 70 pixels wide with 1, 2 or 3 of them.

    Args:
        in_channels: channels of the images.
        width: channels after the first convolution; doubled with each further one, at most 8 times.
        num_layers: convolutions of stride 2.
        norm: `group` (each image by itself: the same on any number of processes), `batch` (as published; one process
            or GPUs) or `none`.
    """

    def __init__(self, in_channels: int, width: int = 64, num_layers: int = 3, norm: Norm = "group") -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for number in range(1, num_layers + 1):
            after, stride = width * min(2**number, 8), 2 if number < num_layers else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=norm == "none")]
            layers += [*_norm(norm, after), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) in about [-1, 1] to one number a patch, (B, 1, h, w)."""
        judged: Tensor = self.layers(images_BCHW)
        return judged


def smallest_image(num_layers: int) -> int:
    """The smallest side of an image that `Discriminator` can judge."""
    return next(side for side in range(1, 1 << 12) if _patches(side, num_layers) >= 1)


def _patches(side: int, num_layers: int) -> int:
    for stride in [2] * num_layers + [1, 1]:
        side = (side + 2 - 4) // stride + 1 if side >= 2 else 0
    return side


def _norm(norm: Norm, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.GroupNorm(max(g for g in (1, 2, 4, 8, 16, 32) if width % g == 0), width)
            if norm == "group" else nn.BatchNorm2d(width)]  # fmt: skip
