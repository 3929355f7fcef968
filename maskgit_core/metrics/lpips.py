"""LPIPS (Zhang et al. 2018, arXiv:1801.03924, v0.1): distance of deep features, per image, equal to package `lpips`.

Every tapped feature map is scaled to unit length along its channels; squared differences are weighted by a learned
linear head, averaged over pixels and summed over taps. The heads come with torchmetrics (the same files as in `lpips`);
the ImageNet backbone is torchvision's file, given or fetched through the weights registry.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.extractors import read_tensors, sha256_of
from maskgit_core.files import installed_file
from maskgit_core.hints import Weights
from maskgit_core.layers.vgg16 import vgg16_convolutions
from maskgit_core.weights.registry import verified

#: Layers of torchvision's `features` that are compared, their channels, and the sha256 prefix of the head file.
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
HEAD_SHA256 = {"alex": "df73285e", "vgg": "a78928a0"}
REGISTRY = {"alex": "lpips/alexnet", "vgg": "lpips/vgg16"}
# ImageNet's mean and deviation in the [-1, 1] range, as the published network has them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Network(nn.Module):
    """Distance (B,) of two batches of float RGB images in [-1, 1]."""

    def __init__(self, net: Literal["alex", "vgg"]) -> None:
        super().__init__()
        self.net, self.taps = net, TAPS[net]
        self.features = _alexnet() if net == "alex" else vgg16_convolutions()
        self.heads = nn.ParameterList([torch.zeros(width) for width in CHANNELS[net]])
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        total_B = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        both = (torch.cat([a_BCHW, b_BCHW]) - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            both = layer(both)
            if index in self.taps:
                a, b = (both / (both.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)).chunk(2)
                weight = self.heads[self.taps.index(index)]
                total_B = total_B + torch.einsum("bchw,c->bhw", (a - b).square(), weight).mean(dim=(1, 2))
        return total_B


def _alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet up to the fifth ReLU, under the same indices."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


class Metric:
    """Mean LPIPS over images.

    Args:
        net: backbone; the field's tables use `alex`, training losses `vgg`.
        backbone: torchvision's file (`alexnet-owt-7be5be79.pth`, `vgg16-397923af.pth`) or a registry name; None: the
            registry's.
        device: where it is computed.

    Raises:
        WeightsError: a file is missing or is not what it should be.
    """

    def __init__(
        self, *, net: Literal["alex", "vgg"] = "alex", backbone: Weights[str | None] = None, device: str = "cpu"
    ) -> None:
        self.net, self.device, self.count, self._sum = net, device, 0, 0.0
        self.network = Network(net)
        path = _locate(backbone, net)
        self.weights_sha256 = sha256_of(path)
        _load_backbone(self.network, path)
        _load_heads(self.network, net)
        self.network.to(device).eval().requires_grad_(False)

    @property
    def about(self) -> dict[str, object]:
        """Settings that fix the meaning of the number."""
        return {"net": self.net, "version": "0.1", "backbone_sha256": self.weights_sha256, "range": "[-1, 1]"}

    @torch.inference_mode()
    def per_image(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """LPIPS (B,) of float images in [0, 1]; grey counts as RGB."""
        if a_BCHW.shape != b_BCHW.shape or not a_BCHW.is_floating_point():
            raise DataError(
                f"lpips: {a_BCHW.dtype} {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)} given; "
                "give float images in [0, 1] of one shape"
            )
        pair = [(x.to(self.device).float() * 2 - 1).expand(-1, 3, -1, -1) for x in (a_BCHW, b_BCHW)]
        values: Tensor = self.network(*pair)
        return values

    def update(self, originals_BCHW: Tensor, reconstructions_BCHW: Tensor) -> Tensor:
        """Adds pairs of float images in [0, 1]; returns the value of each."""
        values = self.per_image(originals_BCHW, reconstructions_BCHW)
        self.count += len(values)
        self._sum += float(values.double().sum())
        return values

    def merge(self, other: Metric) -> None:
        """Adds all that `other` has seen."""
        self.count += other.count
        self._sum += other._sum

    def compute(self) -> dict[str, float]:
        """`{"lpips": mean over images}`."""
        if self.count == 0:
            raise DataError("lpips: no image pair was given; nothing to average")
        return {"lpips": self._sum / self.count}


def _locate(backbone: str | None, net: str) -> Path:
    return verified(REGISTRY[net] if backbone is None else backbone)


def _load_backbone(network: Network, path: Path) -> None:
    tensors = read_tensors(path)
    for name, parameter in network.features.named_parameters():
        tensor = tensors.get(f"features.{name}")
        if tensor is None or tensor.shape != parameter.shape:
            state = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise WeightsError(
                f"{path}: features.{name} {state}; the file is not torchvision's {network.net} backbone of LPIPS; "
                f"give {REGISTRY[network.net]} or that file"
            )
        parameter.data.copy_(tensor)


def _load_heads(network: Network, net: str) -> None:
    path = installed_file("torchmetrics", "functional", "image", "lpips_models", f"{net}.pth")
    if path is None or not sha256_of(path).startswith(HEAD_SHA256[net]):
        raise WeightsError(
            f"{path or 'torchmetrics'}: is not the published head of LPIPS; install torchmetrics 1.6 or newer again"
        )
    heads = read_tensors(path)
    for index, parameter in enumerate(network.heads):
        parameter.data.copy_(heads[f"lin{index}.model.1.weight"].flatten())
