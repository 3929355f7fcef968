"""VGG-16's second fully connected layer: the features of precision and recall (Kynkäänniemi et al. 2019).

torch-fidelity 0.4 takes these for precision and recall unless told otherwise: torchvision's ImageNet weights, pixels by
TensorFlow 1's bilinear resize to 224 x 224, ImageNet's mean and deviation, the 4096 outputs after the ReLU.

B batch, C channels, H, W height and width, D = 4096 features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskgit_core.errors import WeightsError
from maskgit_core.extractors import load_strictly, read_tensors, sha256_of
from maskgit_core.hints import Weights
from maskgit_core.layers.network_input import resize_for_network
from maskgit_core.layers.vgg16 import vgg16_convolutions
from maskgit_core.weights.registry import verified

#: First digits of the published file's sha256 (they are in its name).
PUBLISHED_SHA256 = "397923af"
SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """The network up to its second fully connected layer; the names are those of torchvision's file."""

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16_convolutions(last_pool=True)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Identity(), nn.Linear(4096, 4096), nn.ReLU()
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = self.classifier(self.features(x_BCHW).flatten(1))
        return features_BD


class Extractor(nn.Module):
    """VGG-16 features for precision and recall.

    Args:
        weights: a name in the weights registry, or a file in torchvision's layout.
        random_seed: random weights instead of `weights` (set that to null), for trials without the file.

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """

    feature_dim = 4096
    outputs = ("features",)

    def __init__(self, *, weights: Weights[str | None] = "lpips/vgg16", random_seed: int | None = None) -> None:
        super().__init__()
        if weights is None and random_seed is None:
            raise WeightsError("extractor.weights: missing; name weights, or set random_seed for a trial without them")
        with torch.device("meta"):  # 138 million weights are not drawn only to be overwritten
            self.network = Network()
        if random_seed is not None:
            self.network.load_state_dict(random_state(random_seed), assign=True)
            self.weights_sha256, self.distance_name = f"random, seed {random_seed}", "fd_random_vgg16"
        else:
            path = verified(str(weights))
            self.weights_sha256 = sha256_of(path)
            published = self.weights_sha256.startswith(PUBLISHED_SHA256)
            self.distance_name = "fd_vgg16" if published else "fd_unpublished_vgg16"
            load(self.network, path)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def preprocessing(self) -> dict[str, object]:
        """The preprocessing of pixels before the network."""
        return {"resize": "tf1", "input_size": SIDE, "rounding": "none", "scale": "ImageNet's mean and deviation"}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images of any size to float32 features (B, 4096)."""
        if images_BCHW.shape[1] == 1:
            images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        x_BCHW = (resize_for_network(images_BCHW, SIDE, "tf1") - self.mean) / self.deviation
        features_BD: Tensor = self.network(x_BCHW)
        return features_BD


def load(network: nn.Module, path: Path) -> None:
    """Loads torchvision's file strictly, but for the last layer, which gives class scores.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape; names the first.
    """
    tensors = {name: value for name, value in read_tensors(path).items() if not name.startswith("classifier.6.")}
    load_strictly(network, tensors, path, "VGG-16 in torchvision's layout", assign=True)


def random_state(seed: int) -> dict[str, Tensor]:
    """Random weights of the published shapes, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = Network().state_dict()
    for name, tensor in state.items():
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1
        state[name] = functional.hardtanh(torch.randn(tensor.shape, generator=generator), -3, 3) * scale
    return state
